"""Models: checkpoints by the row, loading, merging, tokenizers, llama.cpp, memory estimates."""
