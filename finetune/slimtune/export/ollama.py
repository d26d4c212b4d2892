"""The Modelfile beside the user: where it is written, and what of the settings it says."""

import os
from pathlib import Path, PurePath

from slimtune import prompts
from slimtune.config import Config
from slimtune.console import SettingsError, near
from slimtune.export.modelfile import modelfile
from slimtune.models import tokenizers
from slimtune.models.checkpoints import Checkpoint


def refuse_existing(file: Path, config: Config) -> None:
    """Raise SettingsError when a Modelfile is there already and may not be replaced."""
    if file.exists() and not config.options.overwrite:
        raise SettingsError(
            f"{near(file)}: exists already",
            "it may hold changes of yours",
            "move it away, or add --overwrite",
        )


def write_modelfile(file: Path, gguf: Path, model: Path, config: Config) -> None:
    """FROM the GGUF (relative to the Modelfile), the prompt template, system, stops, context."""
    tokenizer = tokenizers.load(model)
    trained = Checkpoint(model).config["max_position_embeddings"]
    text = modelfile(
        _relative(gguf, file.parent),
        prompts.resolve(config.model.prompt_template, tokenizer.chat_template),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        system=config.model.system_prompt,
        num_ctx=min(config.training.max_length, trained),
    )
    partial = file.with_name(f"{file.name}.new")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def _relative(gguf: Path, folder: Path) -> PurePath:
    try:
        return PurePath(".") / gguf.relative_to(folder)
    except ValueError:
        return gguf
