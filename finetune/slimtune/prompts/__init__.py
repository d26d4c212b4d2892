"""One prompt for training, evaluation, llama.cpp and Ollama: templates, the renderer, token ids."""

from slimtune.prompts.encoding import IGNORED, Encoded, encode, encode_prompt
from slimtune.prompts.long_rows import Fitted, Policy, fit
from slimtune.prompts.rendering import Message, names, pieces, render, resolve, template

__all__ = [
    "IGNORED",
    "Encoded",
    "Fitted",
    "Message",
    "Policy",
    "encode",
    "encode_prompt",
    "fit",
    "names",
    "pieces",
    "render",
    "resolve",
    "template",
]
