"""How long a run would take: a few real steps, timed; nothing is kept of them."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PrinterCallback, TrainerCallback

from slimtune.config import Config
from slimtune.models import loading, memory
from slimtune.training import automatic, estimates, lora, streaming
from slimtune.training.attention import training_compute
from slimtune.training.batches import Sample
from slimtune.training.fitting import training_arguments
from slimtune.training.trainer import SlimTrainer

_WARMING = 1  # steps before the clock starts: the first one loads kernels and makes the optimizer


class _Clock(TrainerCallback):
    """Seconds and tokens of all steps after the first."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []
        self.trainer: SlimTrainer | None = None

    def on_step_end(self, *_: object, **__: object) -> None:
        self.marks.append((time.monotonic(), self.trainer.tokens))

    @property
    def tokens_per_second(self) -> float:
        (started, before), (ended, after) = self.marks[_WARMING - 1], self.marks[-1]
        return (after - before) / (ended - started)


def dry_run(
    config: Config, model: str, run: estimates.Run, samples: Sequence[Sample]
) -> dict[str, str]:
    """The lines of --dry-run about a run; with `time_steps` they have its duration among them."""
    config, run = automatic.settled(config, run)
    rows, available = config.training.rows, memory.available_memory(run.recipe.device)
    found = estimates.estimate_lines(config, run)
    found |= streaming.dry_lines(run, rows, available)
    if not config.training.time_steps:
        return found
    speed = tokens_per_second(config, model, run, samples)
    seconds = sum(run.lengths) * getattr(config, run.section).epochs / speed
    took = f"after {config.training.time_steps} timed steps"
    found["time"] = f"about {_spoken(seconds)} of training, {speed:,.0f} tokens/s {took}"
    if run.recipe.streamed:
        found["disk"] = streaming.verdict(run, rows, speed)
    return found


def dry_runs(
    config: Config, model: str, runs: Mapping[str, estimates.Run], samples: Sequence[Sample]
) -> dict[str, str]:
    """The lines of several runs on `model`, each under the name of its stage."""
    found = {stage: dry_run(config, model, run, samples) for stage, run in runs.items()}
    return {f"{stage}, {name}": text for stage in found for name, text in found[stage].items()}


def tokens_per_second(
    config: Config, model: str, run: estimates.Run, samples: Sequence[Sample]
) -> float:
    """Loads `model` and trains it for `time_steps` steps more than the first one."""
    settings = config.training
    compute = training_compute(config.model, streamed=run.recipe.streamed)
    compute = compute.keeping(run.recipe.quantization)
    if run.recipe.trained is None:
        learner = loading.load_model(model, compute.learning_whole()).float()
    else:
        learner = loading.load_model(model, compute)
        quantized = compute.quantized
        learner = lora.attach(learner, config.lora, seed=settings.seed, quantized=quantized)
    learner.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(learner, settings, Path(folder), 1, False)
        arguments.max_steps = _WARMING + settings.time_steps
        arguments.save_strategy = "no"
        clock = _Clock()
        trainer = SlimTrainer(model=learner, args=arguments, train_dataset=list(samples))
        trainer.remove_callback(PrinterCallback)
        clock.trainer = trainer
        trainer.add_callback(clock)
        trainer.train()
    return clock.tokens_per_second


def _spoken(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
