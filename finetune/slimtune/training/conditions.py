"""What a training run depends on, by name: a checkpoint is resumed under the same or refused."""

import json
from collections.abc import Sequence
from pathlib import Path

from slimtune.artifacts import sha256
from slimtune.config import Config
from slimtune.console import processes
from slimtune.models.identity import identity

# Folders and what changes no number: they may be other ones when a run goes on.
_FREE = {
    "lora.output_dir",
    "training.train_data",
    "training.val_data",
    "training.report_to",
    "training.activation_checkpointing",
    "training.max_truncated_share",
    "training.time_steps",
    "distillation.student_model",
    "distillation.teacher_model",
    "distillation.output_dir",
    "distillation.cache_dir",
    "distillation.text_data",
}


def conditions(
    config: Config,
    sections: Sequence[str],
    models: dict[str, str],
    rows: dict[str, Path],
) -> dict[str, str]:
    """{name: value} of the settings in `sections`, of the models' weights and the rows' bytes."""
    settings = config.model_dump(mode="json")
    found = {
        f"{section}.{name}": json.dumps(value, ensure_ascii=False)
        for section in sections
        for name, value in settings[section].items()
        if f"{section}.{name}" not in _FREE
    }
    for name in ("dtype", "device", "prompt_template", "quantization"):
        found[f"model.{name}"] = json.dumps(settings["model"][name])
    found |= {what: identity(model) for what, model in models.items()}
    found |= {what: sha256(file)[:16] for what, file in rows.items()}
    return found | {"number of processes": str(processes())}
