"""Before the first step of a run, new or resumed: what would be found out too late otherwise.

`precheck` looks for a stopped run in the way, for packages that are missing and for launchers that
mislead; `resume_conditions` says by name what a run depends on, for under others it is refused.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from slimtune.artifacts import not_without_overwrite, require_writable, sha256
from slimtune.config import Config
from slimtune.console import near, processes
from slimtune.errors import ResourceError, SettingsError
from slimtune.models.compute import choose_device
from slimtune.models.folders import weights_identity
from slimtune.packages import is_installed, pip_line
from slimtune.training import checkpoints, fitting, sharding

_log = logging.getLogger(__name__)

_LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # `accelerate launch` sets it for every process
# Folders and what changes no number: they may be other ones when a run goes on.
_FREE = {
    "lora.output_dir",
    "training.train_data",
    "training.val_data",
    "training.replay_data",
    "training.report_to",
    "training.activation_checkpointing",
    "training.stream_base",
    "training.max_truncated_share",
    "training.time_steps",
    "distillation.student_model",
    "distillation.teacher_model",
    "distillation.output_dir",
    "distillation.cache_dir",
    "distillation.text_data",
}


def precheck(config: Config, *folders: Path, goes_on: bool = False) -> None:
    """Raises SettingsError and ResourceError for what would be found out after minutes or hours.

    `folders` are where its runs keep their checkpoints. `goes_on` says that there is finished work
    to go on with besides.
    """
    if not goes_on:
        checkpoints.require_begun(config, folders)
    for folder in folders:
        require_writable(folder, config)
    _require_package(config.training.report_to)
    fitting.require_package(config.training)
    device = choose_device(config.model.device).type
    sharding.require_launch(device)
    _tell_about_launcher(device)
    options = config.options
    stopped = [folder for folder in folders if checkpoints.found(folder)]
    if stopped and not (options.resume or options.overwrite):
        left = SettingsError(
            f"{near(stopped[0])}: a stopped run left its checkpoints here",
            "starting again would throw its work away",
            "add --resume to go on, or --overwrite to start from nothing",
        )
        not_without_overwrite(left, config, "--resume or --overwrite")


def resume_conditions(
    config: Config,
    sections: Sequence[str],
    models: Mapping[str, str],
    rows: Mapping[str, Path],
) -> dict[str, str]:
    """{name: value} of the settings in `sections`, of the models' weights and the rows' bytes."""
    settings = config.model_dump(mode="json")
    found: dict[str, str] = {}
    for section in sections:
        for name, value in settings[section].items():
            found[f"{section}.{name}"] = json.dumps(value, ensure_ascii=False)
    for name in _FREE:
        found.pop(name, None)
    for name in ("dtype", "device", "prompt_template", "quantization"):
        found[f"model.{name}"] = json.dumps(settings["model"][name])
    found |= {what: weights_identity(model) for what, model in models.items()}
    found |= {what: sha256(file)[:16] for what, file in rows.items()}
    return found | {"number of processes": str(processes())}


def _require_package(report_to: str) -> None:
    if report_to != "none" and not is_installed(report_to):
        raise ResourceError(
            f"training.report_to: {report_to}",
            f"the package {report_to} is not installed",
            f"{pip_line(report_to)}, or set it to none: metrics.jsonl is written anyway",
        )


def _tell_about_launcher(device: str) -> None:
    """Where fewer processes work, or in another way, than one would think."""
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus > 1 and processes() == 1:
        _log.warning(
            "caution: this run uses one of %d GPUs; all of them work under `accelerate launch "
            "--config_file finetune/launch/ddp_gpus.yaml`",
            gpus,
        )
    if _LAUNCHED in os.environ and processes() == 1:
        _log.warning(
            "caution: accelerate started one process; on CPUs --num_processes counts only with "
            "--config_file finetune/launch/ddp_cpu.yaml"
        )
