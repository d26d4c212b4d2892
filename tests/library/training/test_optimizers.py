"""Optimizers and schedules are the ones asked for and train; noise acts in training alone."""

import math
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_samples
from transformers import TrainingArguments

from slimtune.config import Lora, Training
from slimtune.config.catalogues import names
from slimtune.errors import ResourceError
from slimtune.training import callbacks, fitting, lora
from slimtune.training.batches import collate
from slimtune.training.fitting import fit
from slimtune.training.trainer import SlimTrainer

KINDS = {
    "adamw_torch": ("AdamW", 1e-2),
    "adamw_8bit": ("AdamW", 1e-2),
    "paged_adamw_32bit": ("AdamW", 1e-2),
    "paged_adamw_8bit": ("AdamW", 1e-2),
    "lion_32bit": ("Lion", 3e-3),
    "lion_8bit": ("Lion", 3e-3),
    "adafactor": ("Adafactor", 1e-2),
    "sgd": ("SGD", 1.0),
}


def adapted() -> torch.nn.Module:
    return lora.attach(tiny_model(), Lora(rank=4), seed=0)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple:
    """The optimizer and the curve of a short run."""
    made = []
    create = SlimTrainer.create_optimizer

    def watched(self, model=None):
        made.append(create(self, model))
        return made[-1]

    monkeypatch.setattr(SlimTrainer, "create_optimizer", watched)
    training = Training(epochs=4, batch_size=4, evaluations_per_epoch=1, **settings)
    samples = tiny_samples(16)
    return made, fit(adapted(), samples, samples[:8], training, folder / "checkpoints")


@pytest.mark.parametrize("name", KINDS)
def test_an_optimizer_is_the_one_asked_for_and_learns(name, tmp_path, monkeypatch) -> None:
    kind, rate = KINDS[name]
    made, curve = run(tmp_path, monkeypatch, optimizer=name, learning_rate=rate)
    assert kind in type(made[0]).__name__
    losses = [loss for _, loss in curve.validation]
    assert losses[-1] < losses[0] - 0.02, name


def test_adamw_8bit_keeps_its_moments_in_bytes() -> None:
    """Of tensors of 4096 numbers and more: smaller ones stay in float32."""
    chosen = fitting.optimizer_arguments(Training(optimizer="adamw_8bit"), 10)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, **chosen)
    kind, options = SlimTrainer.get_optimizer_cls_and_kwargs(arguments, None)
    weight = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = kind([weight], **options)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_loraplus_gives_b_its_own_rate(tmp_path: Path) -> None:
    model = adapted()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), learning_rate=1e-3, weight_decay=0.1, use_cpu=True
    )
    trainer = SlimTrainer(model, arguments, train_dataset=tiny_samples(4), loraplus_ratio=16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, (rate, decay) in rates.items():
        assert rate == pytest.approx(16e-3 if "lora_B" in name else 1e-3), name
        assert decay == 0.1


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ("cosine", 0.0), ("linear", 0.0), ("constant", 1.0), ("constant_with_warmup", 1.0),
        ("cosine_with_min_lr", 0.1), ("polynomial", 0.0), ("cosine_with_restarts", 0.0),
        ("inverse_sqrt", None), ("warmup_stable_decay", 0.0),
    ],
)  # fmt: skip
def test_a_schedule_ends_where_it_should(schedule, last, tmp_path, monkeypatch) -> None:
    made, _ = run(
        tmp_path, monkeypatch, lr_scheduler=schedule, learning_rate=1e-2, warmup_ratio=0.1
    )
    rate = made[0].param_groups[0]["lr"] / 1e-2
    assert rate == pytest.approx(last, abs=0.02) if last is not None else 0 < rate < 1


@pytest.fixture(scope="module")
def idle() -> torch.nn.Module:
    """A model whose weights no test changes."""
    return adapted()


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("schedule", names("lr_schedulers"))
def test_no_step_is_without_effect(idle, schedule, ratio, steps, tmp_path) -> None:
    """However short the run: the warm-up rises to the rate asked for, and none stands still."""
    settings = Training(lr_scheduler=schedule, warmup_ratio=ratio)
    arguments = fitting.training_arguments(idle, settings, tmp_path, steps, False)
    for name, value in fitting.optimizer_arguments(settings, steps).items():
        setattr(arguments, name, value)
    arguments.learning_rate = 1e-2
    trainer = SlimTrainer(idle, arguments, train_dataset=tiny_samples(4), loraplus_ratio=4)
    trainer.create_optimizer_and_scheduler(steps)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    lowest = [min(group) for group in zip(*rates, strict=True)]
    assert min(lowest) > 0, rates
    assert max(map(max, rates)) <= 4 * 1e-2 * (1 + 1e-9)
    if schedule == "constant" or ratio == 0:
        assert rates[0] == pytest.approx([group["initial_lr"] for group in groups(trainer)])
    else:
        rising = min(steps - 1, math.ceil(steps * min(ratio, 0.999)))
        first = [rate[0] for rate in rates[:rising]]
        assert first == pytest.approx([1e-2 * (k + 1) / (rising + 1) for k in range(rising)])


def groups(trainer: SlimTrainer) -> list[dict]:
    return trainer.optimizer.param_groups


def test_a_run_of_one_step_learns(tmp_path) -> None:
    model, samples = adapted(), tiny_samples(4)
    fit(model, samples, [], Training(epochs=1, batch_size=4, learning_rate=1e-2), tmp_path / "c")
    moved = [p.detach().abs().max() for name, p in model.named_parameters() if "lora_B" in name]
    assert all(largest > 0 for largest in moved)


def test_without_bitsandbytes_the_cure_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ResourceError, match="adamw_8bit: needs bitsandbytes"):
        fitting.optimizer_arguments(Training(optimizer="adamw_8bit"), 10)
    fitting.optimizer_arguments(Training(), 10)


def test_noise_is_as_large_as_each_sample_wants_and_gone_in_evaluation() -> None:
    model, samples = tiny_model(), tiny_samples(3)
    batch = collate(samples)
    embedding = model.get_input_embeddings()
    seen: list[torch.Tensor] = []
    plain = embedding(batch["input_ids"])
    with callbacks.neftune(model, 5.0):
        embedding.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
        for mode in (model.train, model.eval):
            mode()
            model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"],
                lengths=batch["lengths"], use_cache=False,
            )  # fmt: skip
    model.train()
    torch.testing.assert_close(embedding(batch["input_ids"]), plain)
    noisy, quiet = seen[0] - plain, seen[1] - plain
    assert quiet.abs().max() == 0
    for sample, part in zip(samples, noisy[0].split(batch["lengths"]), strict=True):
        bound = 5.0 / math.sqrt(len(sample.input_ids) * 32)
        assert 0.9 * bound < part.abs().max() <= bound


def test_noise_changes_training_and_not_the_validation_before_it(tmp_path, monkeypatch) -> None:
    _, plain = run(tmp_path / "plain", monkeypatch, learning_rate=1e-2)
    _, noisy = run(tmp_path / "noisy", monkeypatch, learning_rate=1e-2, neftune_alpha=5)
    assert plain.validation[0] == noisy.validation[0]
    assert plain.training[0] != noisy.training[0]
    assert noisy.validation[-1][1] < noisy.validation[0][1]
