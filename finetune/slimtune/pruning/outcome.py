"""What a pruning came to: sizes before and after, what is proven, and the card that says so."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from slimtune.artifacts import Stage
from slimtune.artifacts.files import write_page
from slimtune.config import Config
from slimtune.console import size
from slimtune.inference.stack import read_layers
from slimtune.models.folders import local_folder
from slimtune.models.model_shape import ModelShape
from slimtune.models.served_decoding import write_generation_config
from slimtune.models.weights import Checkpoint
from slimtune.pruning.calibration import Calibration
from slimtune.pruning.trim import Trimmed
from slimtune.report.model_card import name_of, write_derived_card

CARD = "pruning_card.md"


@dataclass(frozen=True)
class Sizes:
    """One side of the card; perplexity and speed are those on rows kept from the calibration."""

    parameters: int
    bytes: int
    vocabulary: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_groups: int
    perplexity: float | None = None
    tokens_per_second: float | None = None


def sizes_of(folder: Path, calibration: Calibration | None, scratch: Path) -> Sizes:
    """The sizes of a model, with how it reads the rows kept back from `calibration`."""
    checkpoint = Checkpoint(folder)
    shape = ModelShape.of(checkpoint.config)
    sizes = Sizes(
        parameters=checkpoint.parameters,
        bytes=checkpoint.bytes,
        vocabulary=shape.vocabulary,
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


@dataclass(frozen=True)
class PruneReport:
    """What the cut changed, and how far the folder, loaded back, is from what was meant.

    `proven`: kind of cut -> largest difference of the logits, as a share of the largest one, or
    "not proven" and why. `rounded`: what ratios became that could not be met. `trimmed`: the cut of
    the vocabulary, None where it was kept, and `trimmed_loss` what that alone changed the loss by,
    in nats a token on the rows kept from the calibration.
    """

    before: Sizes
    after: Sizes
    calibration: str
    proven: dict[str, float | str]
    rounded: list[str]
    trimmed: Trimmed | None = None
    trimmed_loss: float | None = None

    def rows(self) -> list[tuple[str, str, str]]:
        """The card: (what, before, after)."""
        sides = (self.before, self.after)
        lines = [("parameters", *(f"{side.parameters:,}" for side in sides))]
        lines.append(("on disk", *(size(side.bytes) for side in sides)))
        for word, said in _WORDS.items():
            lines.append((said, *(str(getattr(side, word)) for side in sides)))
        if self.before.perplexity and self.after.perplexity:
            lines.append(("perplexity", *(f"{side.perplexity:.2f}" for side in sides)))
            speeds = (f"{side.tokens_per_second:,.0f}" for side in sides)
            lines.append(("tokens/s read", *speeds))
        return lines


_WORDS = {
    "vocabulary": "tokens of vocabulary",
    "layers": "layers",
    "hidden": "hidden size",
    "ffn": "FFN neurons a layer",
    "heads": "heads",
    "kv_groups": "KV groups",
}


def card(report: PruneReport, model: str) -> str:
    """The card beside the weights, as Markdown."""
    lines = [f"# {name_of(model)}, pruned", "", "| | before | after |", "|---|---:|---:|"]
    lines += [f"| {what} | {before} | {after} |" for what, before, after in report.rows()]
    lines += ["", measured(report), ""]
    lines += [f"- {words}" for words in report.rounded]
    if report.trimmed:
        lines.append(f"- vocabulary: all {report.trimmed.rows} training rows keep their tokens")
    for kind, found in report.proven.items():
        if isinstance(found, float):
            found = f"loaded back, logits differ by {found:.1g} of the largest from those meant"
        lines.append(f"- {kind}: {found}")
    return "\n".join(lines) + "\n"


def measured(report: PruneReport) -> str:
    """How the figures of the card came about."""
    told = f"Calibration: {report.calibration}."
    if report.after.perplexity:
        told += " Perplexity and speed are those on rows kept back from it."
    return f"{told} A pruned model gets better again by distillation or training."


def metrics(report: PruneReport) -> dict:
    sides = {"before": asdict(report.before), "after": asdict(report.after)}
    flat = {
        f"{name}_{side}": value for side, sizes in sides.items() for name, value in sizes.items()
    }
    differences = [value for value in report.proven.values() if not isinstance(value, str)]
    flat |= {"calibration": report.calibration, "proven": report.proven}
    flat["rounded"] = report.rounded
    if report.trimmed:
        flat["trimmed"] = asdict(report.trimmed) | {"loss_difference": report.trimmed_loss}
    return flat | {"difference": max(differences) if differences else None}


def write_report(stage: Stage, report: PruneReport, config: Config, model: str) -> None:
    """What a stage that pruned `model` writes beside the weights: card, decoding, figures."""
    write_page(stage.folder / CARD, card(report, model))
    write_generation_config(stage.folder, config.generation)
    stage.metrics.update(metrics(report))
    sizes = {what: f"{old} -> {new}" for what, old, new in report.rows()}
    tested, source = f"\n{measured(report)}\n", local_folder(model)
    write_derived_card(stage.folder, model, "pruned", sizes, base_folder=source, measured=tested)
