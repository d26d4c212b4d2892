"""A GGUF file where a model folder is needed: unpacked once, and from there on it is a folder."""
