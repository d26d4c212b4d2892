"""Fast exact training on modest hardware: padding-free batches, losses only where they count."""
