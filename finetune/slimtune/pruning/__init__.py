"""Pruning: which neurons matter, what is cut, and how the rest makes up for it."""
