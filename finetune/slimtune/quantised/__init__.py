"""Distilling into a quantised file: what ships is what was trained."""
