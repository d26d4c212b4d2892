"""One prompt for training, evaluation, llama.cpp and Ollama: templates, the renderer, token ids."""

from slimtune.prompts.choosing import (
    AUTO,
    no_twin,
    resolve_template,
    shipped_as,
    spelled,
    tell_choice,
    template_of,
)
from slimtune.prompts.encoding import IGNORED, Encoded, encode, encode_prompt, puts_bos
from slimtune.prompts.long_rows import Fitted, Policy, RowLimit, fit_row
from slimtune.prompts.probing import Form, end_of_answer, form_of, same
from slimtune.prompts.rendering import ChatMessage, pieces, render, template, template_names

__all__ = [
    "AUTO",
    "ChatMessage",
    "Encoded",
    "Fitted",
    "Form",
    "IGNORED",
    "Policy",
    "RowLimit",
    "encode",
    "encode_prompt",
    "fit_row",
    "end_of_answer",
    "form_of",
    "no_twin",
    "pieces",
    "puts_bos",
    "render",
    "resolve_template",
    "same",
    "shipped_as",
    "spelled",
    "tell_choice",
    "template",
    "template_names",
    "template_of",
]
