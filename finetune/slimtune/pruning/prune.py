"""Pruning as the scripts run it: a model in, a finished folder and its card out."""

import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from slimtune.artifacts import run_of, stage_folder
from slimtune.artifacts.files import write_page
from slimtune.config import Config
from slimtune.console import size
from slimtune.inference.stack import read_layers
from slimtune.machine.process import large_blocks_returned
from slimtune.models import memory
from slimtune.models.folders import local_folder
from slimtune.models.model_shape import ModelShape
from slimtune.models.served_decoding import with_decoding_of, write_generation_config
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
from slimtune.pruning.sizes import Ratios, rounded, smaller, steps
from slimtune.pruning.sparsity import sparsify
from slimtune.pruning.width import cut_width
from slimtune.pruning.writer import no_numbers, require_finite, smaller_config
from slimtune.report.model_card import write_derived_card

_log = logging.getLogger(__name__)

CARD = "pruning_card.md"


@dataclass(frozen=True)
class Sizes:
    """One side of the card; perplexity and speed are those on rows kept from the calibration."""

    parameters: int
    bytes: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_groups: int
    perplexity: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class PruneReport:
    """What the cut changed, and how far the folder, loaded back, is from what was meant.

    `proven`: kind of cut -> largest difference of the logits, as a share of the largest one, or
    "not proven" and why. `rounded`: what ratios became that could not be met.
    """

    before: Sizes
    after: Sizes
    calibration: str
    proven: dict[str, float | str]
    rounded: list[str]

    def rows(self) -> list[tuple[str, str, str]]:
        """The card: (what, before, after)."""
        sides = (self.before, self.after)
        lines = [("parameters", *(f"{side.parameters:,}" for side in sides))]
        lines.append(("on disk", *(size(side.bytes) for side in sides)))
        for word in ("layers", "hidden", "ffn", "heads", "kv_groups"):
            lines.append((_WORDS[word], *(str(getattr(side, word)) for side in sides)))
        if self.before.perplexity and self.after.perplexity:
            lines.append(("perplexity", *(f"{side.perplexity:.2f}" for side in sides)))
            speeds = (f"{side.tokens_per_second:,.0f}" for side in sides)
            lines.append(("tokens/s read", *speeds))
        return lines


_WORDS = {
    "layers": "layers",
    "hidden": "hidden size",
    "ffn": "FFN neurons a layer",
    "heads": "heads",
    "kv_groups": "KV groups",
}


@large_blocks_returned()
def prune_model(config: Config, model: str, final: Path) -> PruneReport:
    """Prune `model` as config.pruning says and write it to `final`; everything is checked first."""
    source = local_folder(model)
    target = plan_cuts(source, config)
    config = with_decoding_of(config, source)
    require_finite(Checkpoint(source))
    unmet = _unmet(source, target, config)
    for words in unmet:
        _log.info("pruning: %s", words)
    with stage_folder("model_pruning", final, config, inputs=[model]) as stage:
        calibration = calibrate(source, config)
        scratch = stage.folder / "scratch"
        before = _sizes(source, calibration, scratch)
        if calibration:
            require_sound(source, calibration, before.perplexity, scratch)
        try:
            proven = _cut(config, source, target, stage.folder, calibration)
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            raise no_numbers(model) from error
        after = _sizes(stage.folder, calibration, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        said = calibration.source if calibration else "none"
        report = PruneReport(before, after, said, proven, unmet)
        write_page(stage.folder / CARD, card(report, model))
        write_generation_config(stage.folder, config.generation)
        stage.metrics.update(_metrics(report))
        sizes = {what: f"{old} -> {new}" for what, old, new in report.rows()}
        write_derived_card(stage.folder, model, "pruned", sizes, base_folder=source)
    return report


def plan_cuts(source: Path, config: Config) -> ModelShape:
    """The shape that config.pruning asks for; raises what is wrong with model or ratios."""
    pruning, checkpoint = config.pruning, Checkpoint(source)
    shape = prunable_shape(checkpoint)
    source_of(config)
    if pruning.sparsity:
        return shape
    target = smaller(shape, _ratios(config))
    smaller_config(checkpoint.config, target, shape, list(range(target.layers)))
    return target


def parameters_left(model: str, pruned: Path, config: Config) -> int:
    """The parameters of `pruned`, or of what will be cut out of `model` where it is not there."""
    if run_of(pruned) and not config.options.overwrite:
        return Checkpoint(pruned).parameters
    return plan_cuts(local_folder(model), config).parameters


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
    before, after = prunable_shape(Checkpoint(source)), plan_cuts(source, config)
    calibration = source_of(config)
    if calibration:
        longest = longest_row(source, config)
    if calibration == "rows":  # those that cannot be read are told now
        prepared_rows(source, config, config.pruning.calibration_rows, longest)
    return {
        "parameters": f"{before.parameters:,} -> {after.parameters:,}",
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
    if calibration == "self":
        needed = max(needed, 500_000_000 + 4 * shape.parameters)
    said = f"about {memory.gigabytes(needed)}: one layer of {shape.layers} at a time"
    if calibration == "self":
        said += "; the whole model while it writes its own calibration rows"
    return said


def _cut(
    config: Config, source: Path, target: ModelShape, output: Path, calibration: Calibration | None
) -> dict[str, float | str]:
    """The steps one after another, each a folder that the next one reads; the last is `output`.

    Returns what is proven of each kind of cut; of several steps of a kind, the worst.
    """
    pruning, shape = config.pruning, prunable_shape(Checkpoint(source))
    batches = calibration.batches if calibration else None
    if pruning.sparsity:
        exact = sparsify(source, output, pruning, batches, output / "scratch")
        return {"sparsity": exact}
    common = {"criterion": pruning.criterion, "batches": batches, "seed": pruning.seed}
    common |= {"solve": pruning.refit, "scratch": output / "scratch"}
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
    for number, (step, one, options) in enumerate(todo, 1):
        last = number == len(todo)
        folder = output if last else output / "scratch" / f"step{number}"
        options = options | {"scratch": output / "scratch"}
        found = step(source, folder, one, **options)
        difference = found[1] if step is drop_layers else found
        _note(proven, _KINDS[step], difference)
        if source.parent == output / "scratch":
            shutil.rmtree(source)
        source = folder
    return proven


_KINDS = {drop_layers: "depth", cut_hidden: "hidden", cut_width: "width"}
_TOO_LARGE = "not proven: the solved weights of so large a model are not kept until the comparison"


def _note(proven: dict[str, float | str], kind: str, difference: float | None) -> None:
    """Adds one step to what is proven."""
    if difference is None:
        proven[kind] = _TOO_LARGE
    elif not isinstance(proven.get(kind), str):
        proven[kind] = max(difference, proven.get(kind, 0.0))


def _sizes(folder: Path, calibration: Calibration | None, scratch: Path) -> Sizes:
    checkpoint = Checkpoint(folder)
    shape = ModelShape.of(checkpoint.config)
    sizes = Sizes(
        parameters=checkpoint.parameters,
        bytes=checkpoint.bytes,
        layers=shape.layers,
        hidden=shape.hidden,
        ffn=shape.ffn,
        heads=shape.heads,
        kv_groups=shape.kv_heads,
    )
    if calibration is None:
        return sizes
    reading = read_layers(folder, calibration.check, scratch)
    return replace(
        sizes, perplexity=reading.perplexity, tokens_per_second=reading.tokens_per_second
    )


def _metrics(report: PruneReport) -> dict:
    sides = {"before": asdict(report.before), "after": asdict(report.after)}
    flat = {
        f"{name}_{side}": value for side, sizes in sides.items() for name, value in sizes.items()
    }
    differences = [value for value in report.proven.values() if not isinstance(value, str)]
    flat |= {"calibration": report.calibration, "proven": report.proven}
    flat["rounded"] = report.rounded
    return flat | {"difference": max(differences) if differences else None}


def card(report: PruneReport, model: str) -> str:
    """The card beside the weights, as Markdown."""
    lines = [f"# {model}, pruned", "", "| | before | after |", "|---|---:|---:|"]
    lines += [f"| {what} | {before} | {after} |" for what, before, after in report.rows()]
    lines += ["", f"Calibration: {report.calibration}. Perplexity and speed are those on rows kept"]
    lines[-1] += " back from it; a pruned model gets better again by distillation or training."
    lines.append("")
    lines += [f"- {words}" for words in report.rounded]
    for kind, found in report.proven.items():
        if isinstance(found, float):
            found = f"loaded back, logits differ by {found:.1g} of the largest from those meant"
        lines.append(f"- {kind}: {found}")
    return "\n".join(lines) + "\n"
