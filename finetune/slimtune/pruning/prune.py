"""Pruning as the scripts run it: a model in, a finished folder and its card out."""

import logging
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

from slimtune.artifacts import run_of, stage_folder
from slimtune.config import Config
from slimtune.inference.stack import read_layers
from slimtune.machine.process import large_blocks_returned
from slimtune.models import memory
from slimtune.models.folders import local_folder
from slimtune.models.model_shape import ModelShape
from slimtune.models.served_decoding import with_decoding_of
from slimtune.models.weights import Checkpoint
from slimtune.pruning.anatomy import prunable_shape
from slimtune.pruning.calibration import (
    Calibration,
    calibrate,
    longest_row,
    prepared_rows,
    require_sound,
    source_of,
)
from slimtune.pruning.depth import drop_layers
from slimtune.pruning.hidden import cut_hidden
from slimtune.pruning.kept_tokens import kept_tokens
from slimtune.pruning.outcome import PruneReport, Sizes, sizes_of, write_report
from slimtune.pruning.recovery import Kept, recover_blocks, require_recoverable
from slimtune.pruning.sizes import Ratios, rounded, smaller, steps
from slimtune.pruning.sparsity import sparsify
from slimtune.pruning.trim import Trimmed, in_old_ids, trim_vocabulary
from slimtune.pruning.width import cut_width
from slimtune.pruning.writer import no_numbers, require_finite, smaller_config

_log = logging.getLogger(__name__)


@large_blocks_returned()
def prune_model(config: Config, model: str, final: Path) -> PruneReport:
    """Prune `model` as config.pruning says and write it to `final`; everything is checked first."""
    source = local_folder(model)
    kept = kept_tokens(source, config)
    target = plan_cuts(source, config, kept)
    config = with_decoding_of(config, source)
    require_finite(Checkpoint(source))
    unmet = _unmet(source, target, config)
    for words in unmet:
        _log.info("pruning: %s", words)
    with stage_folder("model_pruning", final, config, inputs=[model]) as stage:
        scratch = stage.folder / "scratch"
        base, trimmed = _trimmed(config, source, target, stage.folder, kept)
        calibration = calibrate(base, config)
        seen = in_old_ids(calibration, kept)
        before = sizes_of(source, seen, scratch)
        if seen:
            require_sound(source, seen, before.perplexity, scratch)
        loss = _trimmed_loss(base, before, calibration, scratch) if trimmed else None
        cut = scratch / "cut" if config.pruning.recovers else stage.folder
        try:
            proven, units = _cut(config, base, target, cut, calibration)
            if config.pruning.recovers:
                read = calibration.batches
                taught = recover_blocks(
                    base, cut, stage.folder, read, config.pruning, scratch, units
                )
                stage.metrics.update(taught.metrics())
                proven |= {"blocks": taught.difference}
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            raise no_numbers(model) from error
        if trimmed:
            proven = {"vocabulary": trimmed.difference} | proven
        after = sizes_of(stage.folder, calibration, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        said = calibration.source if calibration else "none"
        report = PruneReport(before, after, said, proven, unmet, trimmed, loss)
        stage.metrics["kept"] = asdict(units)
        write_report(stage, report, config, model)
    return report


def trim_model(config: Config, model: str, final: Path) -> PruneReport:
    """`prune_model` with the cut of the vocabulary alone."""
    ratios = dict.fromkeys(("ffn_ratio", "kv_group_ratio", "layer_ratio", "hidden_ratio"), 0.0)
    none = {"target_params": None, "sparsity": 0.0, "recover": "none"}
    return prune_model(_with(config, ratios | none), model, final)


def cut_model(config: Config, model: str, final: Path) -> PruneReport:
    """`prune_model` with the other cuts alone, of a model that was trimmed where the settings say
    so; what the layers have lost is for `recover_model` to win back."""
    trimmed = {"vocabulary": "keep", "vocabulary_text": None, "languages": []}
    changed = {"recover": "none", "refit": _refits(config)}
    changed |= trimmed if config.pruning.trims else {}
    return prune_model(_with(config, changed), model, final)


def _refits(config: Config) -> bool:
    """Whether a cut is refitted. auto: unless layers are to learn, which end closer without it."""
    refit = config.pruning.refit
    return not config.pruning.recovers if refit == "auto" else refit


def _with(config: Config, changed: dict[str, object]) -> Config:
    return config.model_copy(update={"pruning": config.pruning.model_copy(update=changed)})


def with_text_in_use(config: Config) -> Config:
    """Where tokens go and no text is named, the distillation text says which stay as well."""
    pruning, text = config.pruning, config.distillation.text_data
    if not pruning.trims or pruning.vocabulary_text or text is None:
        return config
    return _with(config, {"vocabulary_text": text})


def plan_cuts(source: Path, config: Config, kept: list[int] | None) -> ModelShape:
    """The shape that config.pruning asks for, with the tokens `kept` (None: all).

    Raises what is wrong with model or ratios.
    """
    pruning, checkpoint = config.pruning, Checkpoint(source)
    shape, ratios = prunable_shape(checkpoint), _ratios(config)
    if kept:
        shape = replace(shape, vocabulary=len(kept))
    require_recoverable(config, source_of(config))
    if pruning.sparsity or (kept and ratios == Ratios()):
        return shape
    target = smaller(shape, ratios)
    smaller_config(checkpoint.config, target, shape, list(range(target.layers)))
    return target


def _trimmed(
    config: Config, source: Path, target: ModelShape, output: Path, kept: list[int] | None
) -> tuple[Path, Trimmed | None]:
    """The folder that the other cuts start from: `output` itself where there are none."""
    if kept is None:
        return source, None
    alone = replace(target, vocabulary=prunable_shape(Checkpoint(source)).vocabulary)
    alone = alone == prunable_shape(Checkpoint(source)) and not config.pruning.sparsity
    base = output if alone else output / "scratch" / "vocabulary"
    return base, trim_vocabulary(source, base, kept, config)


def _trimmed_loss(
    base: Path, before: Sizes, calibration: Calibration | None, scratch: Path
) -> float | None:
    """Nats a token by which the loss on the rows kept back changed with the vocabulary alone."""
    if calibration is None:
        return None
    return math.log(read_layers(base, calibration.check, scratch).perplexity / before.perplexity)


def parameters_left(model: str, pruned: Path, config: Config) -> int:
    """The parameters of `pruned`, or of what will be cut out of `model` where it is not there."""
    if run_of(pruned) and not config.options.overwrite:
        return Checkpoint(pruned).parameters
    source = local_folder(model)
    return plan_cuts(source, config, kept_tokens(source, config)).parameters


def _ratios(config: Config) -> Ratios:
    pruning = config.pruning
    return Ratios(
        ffn=pruning.ffn_ratio,
        groups=pruning.kv_group_ratio,
        layers=pruning.layer_ratio,
        hidden=pruning.hidden_ratio,
        parameters=None if pruning.target_params is None else round(pruning.target_params),
    )


def _unmet(source: Path, target: ModelShape, config: Config) -> list[str]:
    """The ratios that could not be met, in words."""
    if config.pruning.sparsity:
        return []
    return rounded(ModelShape.of(Checkpoint(source).config), target, _ratios(config))


def estimate_pruning(model: str, config: Config) -> dict[str, str]:
    """For --dry-run: what would be cut, from what, and in how much memory."""
    source = local_folder(model)
    before = prunable_shape(Checkpoint(source))
    after = plan_cuts(source, config, kept_tokens(source, config))
    calibration = source_of(config)
    if calibration:
        longest = longest_row(source, config)
    if calibration == "rows":  # those that cannot be read are told now
        prepared_rows(source, config, config.pruning.calibration_rows, longest)
    return {
        "parameters": f"{before.parameters:,} -> {after.parameters:,}",
        "tokens of vocabulary": f"{before.vocabulary} -> {after.vocabulary}",
        "FFN neurons a layer": f"{before.ffn} -> {after.ffn}",
        "KV groups": f"{before.kv_heads} -> {after.kv_heads}",
        "layers": f"{before.layers} -> {after.layers}",
        "hidden size": f"{before.hidden} -> {after.hidden}",
        "rounded": "; ".join(_unmet(source, after, config)) or "no",
        "calibration": {"rows": "prepared rows", "self": "the model's own words"}.get(
            calibration, "none"
        ),
        "memory": _memory(before, calibration, config),
    }


def _memory(shape: ModelShape, calibration: str | None, config: Config) -> str:
    if calibration is None:
        return "about 0.45 GB, whatever the size of the model"
    layer = 4 * shape.linear_parameters // shape.layers
    needed = 450_000_000 + layer + 3 * 8 * shape.ffn**2
    needed += layer if config.pruning.criterion == "taylor" else 0
    needed += 4 * layer if config.pruning.recovers else 0  # gradients, two moments, the start
    if calibration == "self":
        needed = max(needed, 500_000_000 + 4 * shape.parameters)
    said = f"about {memory.gigabytes(needed)}: one layer of {shape.layers} at a time"
    if calibration == "self":
        said += "; the whole model while it writes its own calibration rows"
    return said


def _cut(
    config: Config, source: Path, target: ModelShape, output: Path, calibration: Calibration | None
) -> tuple[dict[str, float | str], Kept]:
    """The steps one after another, each a folder that the next one reads; the last is `output`.

    Returns what is proven of each kind of cut, of several steps of a kind the worst, and which
    layers and hidden channels have stayed.
    """
    pruning, shape = config.pruning, prunable_shape(Checkpoint(source))
    batches = calibration.batches if calibration else None
    if pruning.sparsity:
        exact = sparsify(source, output, pruning, batches, output / "scratch")
        return {"sparsity": exact}, Kept()
    common = {"criterion": pruning.criterion, "batches": batches, "seed": pruning.seed}
    common |= {"solve": _refits(config), "scratch": output / "scratch"}
    todo = []
    if target.layers != shape.layers:
        shape = replace(shape, layers=target.layers)
        todo.append((drop_layers, shape, {"batches": batches, "ends": pruning.cut_ends}))
    if target.hidden != shape.hidden:
        shape = replace(shape, hidden=target.hidden)
        todo.append((cut_hidden, shape, common))
    way = steps(shape, target) if batches and shape != target else [target] * (shape != target)
    todo += [(cut_width, one, common) for one in way]
    proven: dict[str, float | str] = {}
    kept: dict[str, list[int]] = {}
    for number, (step, one, options) in enumerate(todo, 1):
        last = number == len(todo)
        folder = output if last else output / "scratch" / f"step{number}"
        options = options | {"scratch": output / "scratch"}
        found = step(source, folder, one, **options)
        if step in _AXES:
            kept[_AXES[step]], found = found
        _note(proven, _KINDS[step], found)
        if source.parent == output / "scratch":
            shutil.rmtree(source)
        source = folder
    return proven, Kept(**kept)


_AXES = {drop_layers: "layers", cut_hidden: "hidden"}
_KINDS = {drop_layers: "depth", cut_hidden: "hidden", cut_width: "width"}
_TOO_LARGE = "not proven: the solved weights of so large a model are not kept until the comparison"


def _note(proven: dict[str, float | str], kind: str, difference: float | None) -> None:
    """Adds one step to what is proven."""
    if difference is None:
        proven[kind] = _TOO_LARGE
    elif not isinstance(proven.get(kind), str):
        proven[kind] = max(difference, proven.get(kind, 0.0))
