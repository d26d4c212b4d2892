"""The proof that a GGUF is its model, and the conversations that it compares.

This file is light: rows are read and rendered before the work, by scripts that may never need
torch. `proving` runs the proof, `reference` asks the model, `verify` compares its file with that.
"""

from collections.abc import Sequence
from pathlib import Path

from slimtune import prompts
from slimtune.artifacts import system_prompt_for
from slimtune.config import Config
from slimtune.data.rows import beside, read_rows
from slimtune.prompts import ChatMessage

ANSWER_TOKENS = 48  # of the answers that are compared
SERVED_ROWS = 8  # that a server is asked: Ollama too, even where nothing is proven
_ROWS = {"quick": 8, "full": 64, "served": SERVED_ROWS, "off": SERVED_ROWS}

# For models converted without prepared rows at hand; with digits, code, Chinese and an emoji.
_PROMPTS = (
    "What is 12 + 30?",
    "Translate to Chinese: good morning",
    "用一句话介绍一下你自己。",
    'Explain this line:\n    print(f"{1 + 1:>4}")',
    "List three colours 🙂",
)


def proof_rows(config: Config, template: str) -> list[list[ChatMessage]]:
    """The first rows of the test data, else prompts of our own after the system prompt.

    Raises InputError for rows that cannot be read, or that the template refuses.
    """
    rows = _conversations(config)[: _ROWS[config.gguf.verify]]
    for messages in rows:
        prompts.render(messages, template, bos_token="<s>", eos_token="</s>")
    return rows


def asked(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """A conversation without its last answer."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def trained_in(config: Config) -> Path:
    """The folder whose record knows what was trained: the adapter's, else the model's."""
    return Path(config.gguf.lora_model or config.gguf.model_path)


def _conversations(config: Config) -> list[list[ChatMessage]]:
    file = config.evaluation.test_data or beside(config.training.train_data, "test")
    if file:
        return [row["messages"] for row in read_rows(file)]
    system = system_prompt_for(config, trained_in(config))
    opening = [ChatMessage(role="system", content=system)] if system else []
    return [[*opening, ChatMessage(role="user", content=text)] for text in _PROMPTS]
