"""From what people have (JSON, JSON Lines, CSV) to rows that train, evaluate and serve alike."""
