"""Inference: who answers, and who scores as well.

`engines` gives transformers and llama.cpp one face: they answer (`generation` chooses tokens by a
`Decoding`) and score (`token_losses`). A server (`server_client`) only answers. What all of them
say is a record of `answers`.
"""
