"""What is checked before any work: a stopped run's checkpoints, report packages, the launcher."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from slimtune.config import Config
from slimtune.console import SettingsError, near, processes
from slimtune.models.loading import choose_device
from slimtune.training import checkpoints, optimizers, sharding

_log = logging.getLogger(__name__)

_LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # `accelerate launch` sets it for every process


def check(folder: Path, config: Config) -> None:
    """Raises SettingsError and ResourceError for what would be found out after minutes or hours.

    `folder` is where the run keeps its checkpoints.
    """
    _require_package(config.training.report_to)
    optimizers.require_package(config.training)
    device = choose_device(config.model.device).type
    sharding.require_launch(device)
    _tell_about_launcher(device)
    options = config.options
    stopped = checkpoints.found(folder)
    if stopped and not (options.resume or options.overwrite or options.dry_run):
        raise SettingsError(
            f"{near(folder)}: a stopped run left its checkpoints here",
            "starting again would throw its work away",
            "add --resume to go on, or --overwrite to start from nothing",
        )


def _require_package(report_to: str) -> None:
    if report_to != "none" and find_spec(report_to) is None:
        raise SettingsError(
            f"training.report_to: {report_to}",
            f"the package {report_to} is not installed",
            f"pip install {report_to}, or set it to none: metrics.jsonl is written anyway",
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
