"""Inference: engines that answer and score, whether transformers or llama.cpp computes.

Greedy decoding is `generation`, the loss of given tokens `token_losses`; what both say is a record
of `answers`, and llama.cpp says the same ones. `engines` gives the two one face.
"""
