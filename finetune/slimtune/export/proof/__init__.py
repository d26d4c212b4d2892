"""The proof that a GGUF file is the model it was made from."""
