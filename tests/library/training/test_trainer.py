"""The trainer: what it measures, what it ends with, and no failure in silence."""

import itertools
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tiny_models import tiny_model, tiny_samples
from transformers import TrainingArguments

from slimtune.config import Lora, Training
from slimtune.errors import QualityError, SettingsError
from slimtune.prompts import IGNORED
from slimtune.training import callbacks, checkpoints, fitting, lora
from slimtune.training.batches import collate
from slimtune.training.fitting import fit
from slimtune.training.trainer import SlimTrainer


@pytest.fixture
def settings() -> Training:
    return Training(epochs=2, batch_size=4, learning_rate=1e-2, evaluations_per_epoch=1)


def arguments(folder: Path, **changes: object) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=3,
        **changes,
    )


def test_validation_loss_is_the_mean_over_tokens(tmp_path: Path) -> None:
    model, samples = tiny_model(), tiny_samples(7)
    trainer = SlimTrainer(model, arguments(tmp_path), eval_dataset=samples)
    loss = trainer.evaluate()["eval_loss"]
    total = count = 0
    for sample in samples:
        logits = model(torch.tensor([sample.input_ids])).logits[0, :-1]
        targets = torch.tensor(sample.labels[1:])
        total += torch.nn.functional.cross_entropy(
            logits, targets, ignore_index=IGNORED, reduction="sum"
        ).item()
        count += sample.supervised
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_samples_do_not_see_each_other() -> None:
    model, (first, second) = tiny_model().eval(), tiny_samples(2)
    batch = collate([first, second])
    del batch["indices"], batch["labels"]
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits[0, len(first.input_ids) :]
        alone = model(torch.tensor([second.input_ids]), use_cache=False).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, settings: Training) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = math.nan
    with pytest.raises(QualityError, match=r"step \d+: the loss"):
        fit(model, tiny_samples(40), [], settings, tmp_path / "checkpoints")


def test_a_gradient_that_is_no_number_stops_before_the_update(
    tmp_path: Path, settings: Training
) -> None:
    model = lora.attach(tiny_model(), Lora(rank=2), seed=0)
    weight = next(p for p in model.parameters() if p.requires_grad)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(QualityError, match="step 1: the gradient"):
        fit(model, tiny_samples(8), [], settings, tmp_path / "checkpoints")
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_nan_gradient_leaves_the_last_good_checkpoint(tmp_path: Path, settings: Training) -> None:
    model = lora.attach(tiny_model(), Lora(rank=2), seed=0)
    weight = next(p for p in model.parameters() if p.requires_grad)
    steps = itertools.count(1)  # one backward pass each
    weight.register_hook(lambda g: g * math.nan if next(steps) == 4 else g)
    with pytest.raises(QualityError, match=r"step 4: the gradient") as error:
        fit(model, tiny_samples(8), [], settings, tmp_path)
    assert "checkpoint-2 from before it is kept" in error.value.cure
    assert checkpoints.to_resume(tmp_path, {}) == tmp_path / "checkpoint-2"


def test_several_gpus_are_not_fed_by_data_parallel(
    tmp_path: Path, settings: Training, monkeypatch
) -> None:
    made = fitting.training_arguments

    def on_three_gpus(*args: object) -> TrainingArguments:
        given = made(*args)
        given._n_gpu = 3
        return given

    monkeypatch.setattr(fitting, "training_arguments", on_three_gpus)
    assert fit(tiny_model(), tiny_samples(8), [], settings, tmp_path / "checkpoints").steps == 4


def test_the_best_checkpoint_is_what_training_ends_with(tmp_path: Path) -> None:
    wild = Training(epochs=6, batch_size=4, learning_rate=0.3, early_stopping_patience=2)
    model = lora.attach(tiny_model(), Lora(rank=4), seed=0)
    validation = tiny_samples(8, seed=9)
    curve = fit(model, tiny_samples(16), validation, wild, tmp_path / "checkpoints")
    trainer = SlimTrainer(model, arguments(tmp_path), eval_dataset=validation)
    best = min(loss for _, loss in curve.validation)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-5)
    assert curve.validation[-1][1] > best


def test_too_few_validation_rows_neither_choose_nor_stop(tmp_path: Path) -> None:
    """Of the same wild training the last checkpoint, and not one step less than asked for."""
    wild = Training(epochs=6, batch_size=4, learning_rate=0.3, early_stopping_patience=1)
    model = lora.attach(tiny_model(), Lora(rank=4), seed=0)
    validation = tiny_samples(8, seed=9)
    with patch.object(callbacks, "ENOUGH_UPDATES", 0):
        told = (model, tiny_samples(16), validation, wild, tmp_path / "checkpoints")
        curve = fit(*told, chooses=False)
    assert curve.steps == 24
    trainer = SlimTrainer(model, arguments(tmp_path), eval_dataset=validation)
    last = curve.validation[-1][1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(last, abs=1e-5)
    assert curve.summary().endswith(f"-> {last:.3f}")
    assert curve.metrics()["validation_loss_best"] < last


def test_the_first_updates_do_not_count_for_early_stopping(tmp_path: Path) -> None:
    wild = Training(epochs=6, batch_size=4, learning_rate=0.3, early_stopping_patience=1)
    for least, early in ((0, True), (24, False)):
        with patch.object(callbacks, "ENOUGH_UPDATES", least):
            model = lora.attach(tiny_model(), Lora(rank=4), seed=0)
            validation = tiny_samples(8, seed=9)
            curve = fit(model, tiny_samples(16), validation, wild, tmp_path / f"{least}")
        assert (curve.steps < 24) is early


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    model = lora.attach(tiny_model(), Lora(rank=2), seed=0)
    with pytest.raises(QualityError, match="changes nothing"):
        lora.save_adapter(model, tmp_path, "base")


def test_an_unknown_target_module_names_those_there_are() -> None:
    with pytest.raises(SettingsError, match="down_proj"):
        lora.attach(tiny_model(), Lora(target_modules=["q_porj"]), seed=0)


def test_the_curve_is_written(tmp_path: Path, settings: Training) -> None:
    model = lora.attach(tiny_model(), Lora(rank=2), seed=0)
    curve = fit(model, tiny_samples(8), tiny_samples(4, 1), settings, tmp_path / "checkpoints")
    curve.write(tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(curve.history)
    assert curve.metrics()["train_loss_last"] < curve.metrics()["train_loss_first"]
