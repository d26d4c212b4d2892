"""Pruning as the scripts run it: a model in, a finished folder out."""

from pathlib import Path

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.models.checkpoints import Checkpoint
from slimtune.models.hub import resolve
from slimtune.pruning.structure import PruneReport, ffn_layers, ffn_size, prune


def prune_model(config: Config, model: str, final: Path) -> PruneReport:
    """Prune `model` as config.pruning says and write it to `final`."""
    pruning = config.pruning
    with stage_folder("model_pruning", final, config, inputs=[model]) as stage:
        report = prune(
            resolve(model),
            stage.folder,
            ffn_ratio=pruning.ffn_ratio,
            criterion=pruning.criterion,
            seed=pruning.seed,
        )
        stage.metrics.update(vars(report))
    return report


def estimate(model: str, ffn_ratio: float) -> dict[str, str]:
    """For --dry-run: what would be cut. Raises what `prune` would raise for the ratio."""
    checkpoint = Checkpoint(resolve(model))
    _, neurons = ffn_layers(checkpoint)
    left = ffn_size(neurons, ffn_ratio)
    return {
        "parameters": f"{checkpoint.parameters:,} before",
        "FFN neurons a layer": f"{neurons} -> {left}",
        "memory": "about 0.35 GB, whatever the size of the model",
    }
