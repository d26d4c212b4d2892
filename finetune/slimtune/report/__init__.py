"""Reports and cards: what records and measures say, as pages for people; light, no torch."""
