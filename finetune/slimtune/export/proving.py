"""The proof as convert_to_gguf runs it: on which prompts, and how much of it memory allows."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimtune import prompts
from slimtune.config import Config
from slimtune.data.rows import beside, read_rows
from slimtune.export.verify import verify
from slimtune.models import memory, tokenizers
from slimtune.models.checkpoints import Checkpoint
from slimtune.prompts import Message

_log = logging.getLogger(__name__)

# For models converted without prepared rows at hand; with digits, code, Chinese and an emoji.
_PROMPTS = (
    "What is 12 + 30?",
    "Translate to Chinese: good morning",
    "用一句话介绍一下你自己。",
    'Explain this line:\n    print(f"{1 + 1:>4}")',
    "List three colours 🙂",
)


def prove(gguf: Path, model: Path, config: Config) -> dict[str, Any]:
    """Compare file and model on verify_prompts rows; {} where the settings skip the proof.

    Where memory does not hold the model in float32, only token ids are compared, and a line says
    so. Raises QualityError for a difference.
    """
    count = config.gguf.verify_prompts
    if not count:
        _log.info("proof skipped: gguf.verify_prompts is 0")
        return {}
    needed = memory.estimate(Checkpoint(model).config, "inference", itemsize=4)
    fits = needed.total < memory.available_memory()
    if not fits:
        _log.info("proof of token ids only: the model in float32 needs about %s", needed)
    template = prompts.resolve(config.model.prompt_template, tokenizers.load(model).chat_template)
    proof = verify(
        gguf,
        model,
        _conversations(config)[:count],
        template,
        quantization=config.gguf.quantization,
        rows=count if fits else 0,
    )
    return {"proof": asdict(proof)}


def words(proof: dict[str, Any]) -> str:
    """The proof in one line."""
    if not proof:
        return "skipped"
    found = proof["proof"]
    text = f"token ids equal on {found['prompts']} prompts"
    if found["nll_gguf"] is not None:
        before, after = found["nll_reference"], found["nll_gguf"]
        text += f"; loss per token {before:.4f} -> {after:.4f}"
        text += f"; same greedy text for {found['agreement']:.0%} of the tokens"
    return text


def _conversations(config: Config) -> list[list[Message]]:
    file = config.evaluation.test_data or beside(config.training.train_data, "test")
    if file and file.is_file():
        return [row["messages"] for row in read_rows(file)]
    system = config.model.system_prompt
    opening = [Message(role="system", content=system)] if system else []
    return [[*opening, Message(role="user", content=text)] for text in _PROMPTS]
