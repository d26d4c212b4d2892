"""Export: GGUF in one pass, the Modelfile for Ollama, and the proof that both are the model."""
