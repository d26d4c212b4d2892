"""What a run measured: its history line by line in metrics.jsonl, and in short for run.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from slimtune.artifacts.files import json_line
from slimtune.console import decoration

METRICS, PLOT = "metrics.jsonl", "loss.png"


_LAST_STEPS = 5  # one row alone may be hard


def _cross_entropy(entry: dict[str, float], prefix: str = "") -> float:
    """Of a student the loss has other parts as well."""
    return entry.get(f"{prefix}ce", entry[f"{prefix}loss"])


@dataclass(frozen=True)
class Curve:
    """What a training run measured, logged step by step (`history`) and in short.

    `seconds` and `tokens` are those of the process that ended the run, also where it was resumed.
    """

    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    tokens: int
    steps: int
    chooses: bool = True  # whether what is kept is the best by validation, or else the last

    @property
    def validation(self) -> list[tuple[int, float]]:
        """(step, validation loss per token) of each validation."""
        return [(int(e["step"]), e["eval_loss"]) for e in self.history if "eval_loss" in e]

    @property
    def training(self) -> list[tuple[int, float]]:
        """(step, training loss per token) of each logged step."""
        return [(int(e["step"]), e["loss"]) for e in self.history if "loss" in e]

    def before_and_after(self) -> tuple[float, float] | None:
        """Cross entropy in nats a token before the first step, and at the best validation after
        it, also where that has too few rows to choose by. Without one, of the first logged step and
        of the last few; None where one step is all there is.
        """
        judged = [e for e in self.history if "eval_loss" in e]
        if len(judged) > 1:
            start, *later = judged
            best = min(later, key=lambda entry: entry["eval_loss"])
            return _cross_entropy(start, "eval_"), _cross_entropy(best, "eval_")
        steps = [_cross_entropy(e) for e in self.history if "loss" in e]
        if len(steps) < 2:
            return None
        last = steps[-min(_LAST_STEPS, len(steps) // 2) :]
        return steps[0], sum(last) / len(last)

    @property
    def gained(self) -> bool:
        """Whether the loss that was learned by, a student's divergence in it, fell on validation
        rows."""
        (_, start), *later = self.validation or [(0, 0.0)]
        return any(loss < start for _, loss in later)

    def metrics(self) -> dict[str, Any]:
        """The numbers for run.json: losses per token, speed in tokens per second."""
        validation = [loss for _, loss in self.validation]
        return {
            "steps": self.steps,
            "train_loss_first": self.training[0][1],
            "train_loss_last": self.training[-1][1],
            "validation_loss_best": min(validation) if validation else None,
            "validation_loss_last": validation[-1] if validation else None,
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "training_seconds": round(self.seconds, 1),
        }

    def summary(self) -> str:
        """First and last losses in one line."""
        losses = self.training
        text = f"training {losses[0][1]:.3f} -> {losses[-1][1]:.3f}"
        if self.validation:
            (_, first), *rest = self.validation
            losses = [loss for _, loss in rest or self.validation]
            kept = min(losses) if self.chooses else losses[-1]
            text += f", validation {first:.3f} -> {kept:.3f}"
        return text

    def speed(self) -> str:
        """Training speed in words, prompts included."""
        return f"{self.tokens / max(self.seconds, 1e-9):.0f} tokens/s"

    def write(self, folder: Path) -> None:
        """metrics.jsonl, one logged step a line, and loss.png."""
        write_history(folder / METRICS, self.history)
        with decoration(PLOT):
            _plot(self, folder / PLOT)


class MetricsFile(TrainerCallback):
    """Appends what is logged to a file as it goes, for whoever watches the run from outside."""

    def __init__(self, file: Path, history: Sequence[dict[str, float]]) -> None:
        self.file = file
        write_history(file, history)  # a stopped run may have logged more than it had saved

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json_line(state.log_history[-1]))


def write_history(file: Path, history: Sequence[dict[str, float]]) -> None:
    """One logged entry a line."""
    file.write_text("".join(map(json_line, history)), encoding="utf-8")


def _plot(curve: Curve, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*curve.training, strict=True), label="training")
    if curve.validation:
        axes.plot(*zip(*curve.validation, strict=True), "o-", label="validation")
    axes.set(xlabel="step", ylabel="loss per supervised token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
