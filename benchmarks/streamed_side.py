"""One side of streamed.py: trains an adapter as train_lora.py does, and reports what it took.

    python benchmarks/streamed_side.py resident|checkpointed|streamed MODEL TOKENS ROWS STEPS DTYPE

ROWS of TOKENS random tokens are accumulated, one a batch, to each of STEPS updates.
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path

from measuring import report

from slimtune.config import Config, Lora, ModelSection, Training
from slimtune.machine.process import leave_out_unused, peak_memory

leave_out_unused(Config())

import torch  # noqa: E402
from transformers import PrinterCallback, TrainerCallback  # noqa: E402

from slimtune.models import loading  # noqa: E402
from slimtune.models.streamed import reader_of  # noqa: E402
from slimtune.training import lora  # noqa: E402
from slimtune.training.attention import training_compute  # noqa: E402
from slimtune.training.batches import Sample  # noqa: E402
from slimtune.training.fitting import training_arguments  # noqa: E402
from slimtune.training.trainer import SlimTrainer  # noqa: E402


class _Marks(TrainerCallback):
    """CPU seconds, wall seconds and bytes read of the files, at the beginning and after each
    update."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._reader = reader_of(model)
        self._marks: list[tuple[float, float, int]] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        read = self._reader.bytes_read if self._reader else 0
        self._marks.append((time.process_time(), time.perf_counter(), read))

    on_step_end = on_train_begin

    def of_a_step(self) -> list[float]:
        """Means of the updates after the first, whose kernels are made in it; or the only one's."""
        first = self._marks[1] if len(self._marks) > 2 else self._marks[0]
        steps = max(1, len(self._marks) - 2)
        return [(b - a) / steps for a, b in zip(first, self._marks[-1], strict=True)]


def main(side: str, model: str, tokens: str, rows: str, steps: str, dtype: str) -> None:
    compute = training_compute(ModelSection(dtype=dtype), streamed=side == "streamed")
    learner = lora.attach(loading.load_model(model, compute), Lora(), seed=1)
    learner.config.use_cache = False
    settings = Training(
        batch_size=1,
        gradient_accumulation_steps=int(rows),
        activation_checkpointing=side == "checkpointed",
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(learner, settings, Path(folder), 1, False)
        arguments.max_steps, arguments.save_strategy = int(steps), "no"
        arguments.logging_steps, arguments.learning_rate, arguments.warmup_steps = 1, 1e-3, 0
        samples = _samples(int(rows), int(tokens), learner.config.vocab_size)
        trainer = SlimTrainer(model=learner, args=arguments, train_dataset=samples)
        trainer.remove_callback(PrinterCallback)
        marks = _Marks(learner)
        trainer.add_callback(marks)
        trainer.train()
    cpu, wall, read = marks.of_a_step()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    learned = hashlib.sha256()
    for one in learner.parameters():
        if one.requires_grad:
            learned.update(one.detach().numpy().tobytes())
    report(cpu=cpu, wall=wall, read=read, losses=losses, peak=peak_memory())
    report(learned=learned.hexdigest()[:12])


def _samples(count: int, tokens: int, vocabulary: int) -> list[Sample]:
    """Random rows, learned at every position."""
    drawn = torch.randint(vocabulary, (count, tokens), generator=torch.Generator().manual_seed(0))
    return [Sample(row, row, index) for index, row in enumerate(drawn.tolist())]


if __name__ == "__main__":
    main(*sys.argv[1:])
