"""One prompt for training, evaluation, llama.cpp and Ollama: templates, the renderer, token ids."""

from slimtune.prompts.encoding import IGNORED, Encoded, encode, encode_prompt
from slimtune.prompts.long_rows import Fitted, Policy, fit_row
from slimtune.prompts.rendering import (
    ChatMessage,
    pieces,
    render,
    resolve_template,
    template,
    template_names,
)

__all__ = [
    "IGNORED",
    "Encoded",
    "Fitted",
    "ChatMessage",
    "Policy",
    "encode",
    "encode_prompt",
    "fit_row",
    "template_names",
    "pieces",
    "render",
    "resolve_template",
    "template",
]
