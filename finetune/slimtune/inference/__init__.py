"""Inference: engines that answer and score, whether transformers or llama.cpp computes."""
