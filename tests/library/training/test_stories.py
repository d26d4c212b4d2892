"""A real, trained Llama learns from real rows: the validation loss falls, and is reported.

The model is stories260K (260,032 parameters), the rows are Alpaca's; neither is in the repository.
"""

import json
import sys
from pathlib import Path

import pytest
from tiny_folders import SHARED

from slimtune.config import Lora, ModelSection, Training
from slimtune.models import loading
from slimtune.training import lora
from slimtune.training.attention import training_compute
from slimtune.training.dataset import read_dataset
from slimtune.training.fitting import fit

MODEL, ROWS = SHARED / "stories260K", SHARED / "instruct" / "alpaca_en_demo.json"
SHORT = 150  # characters of question and answer


@pytest.mark.skipif(not ROWS.is_file(), reason=f"{SHARED} with its model and rows is not there")
def test_the_validation_loss_falls(tmp_path: Path, record_property, capsys) -> None:
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    short = [row for row in rows if len(row["instruction"] + row["input"] + row["output"]) < SHORT]
    for name, part in (("train", short[:96]), ("validation", short[96:128])):
        text = json.dumps(part, ensure_ascii=False)
        (tmp_path / f"rows_{name}.json").write_text(text, encoding="utf-8")
    settings = Training(
        train_data=tmp_path / "rows_train.json",
        val_data=tmp_path / "rows_validation.json",
        epochs=2,
        batch_size=8,
        learning_rate=1e-2,
    )
    dataset = read_dataset(str(MODEL), "llama2", settings)
    base = loading.load_model(MODEL, training_compute(ModelSection(device="cpu")))
    model = lora.attach(base, Lora(), seed=0)
    curve = fit(model, dataset.train, dataset.validation, settings, tmp_path / "checkpoints")
    losses = [loss for _, loss in curve.validation]
    words = f"{len(dataset.train)} rows: {' -> '.join(f'{loss:.3f}' for loss in losses)}"
    record_property("validation loss of stories260K", words)
    with capsys.disabled():  # a figure that the output of every test run shows
        sys.stdout.write(f"\nstories260K, validation loss on {words}\n")
    assert losses[-1] < losses[0] - 0.5
