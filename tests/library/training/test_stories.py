"""A trained Llama learns from rows it has never seen: the validation loss falls, and is reported.

The rows are the sample's; in `--all`, with stories260K (260,032 parameters), Alpaca's where these
are there.
"""

import json
import sys
from pathlib import Path

import pytest
from originals import DATA, originals

from slimtune import sample
from slimtune.config import Lora, ModelSection, Training
from slimtune.models import loading
from slimtune.training import lora
from slimtune.training.attention import training_compute
from slimtune.training.dataset import read_dataset
from slimtune.training.fitting import fit

ALPACA = DATA / "instruct" / "alpaca_en_demo.json"
SHORT = 150  # characters of question and answer
STORIES = pytest.param("stories260K", marks=pytest.mark.long)


@pytest.fixture(params=["taught", *originals("stories260K", STORIES)])
def model_and_rows(request, taught_llama) -> tuple[Path, list[dict[str, str]]]:
    if request.param == "taught":
        return taught_llama, sample.rows(seed=5, count=200)
    return DATA / request.param, json.loads(ALPACA.read_text(encoding="utf-8"))


def test_the_validation_loss_falls(model_and_rows, tmp_path, record_property, capsys) -> None:
    folder, rows = model_and_rows
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
    dataset = read_dataset(str(folder), "llama2", settings)
    base = loading.load_model(folder, training_compute(ModelSection(device="cpu")))
    model = lora.attach(base, Lora(), seed=0)
    curve = fit(model, dataset.train, dataset.validation, settings, tmp_path / "checkpoints")
    losses = [loss for _, loss in curve.validation]
    words = f"{len(dataset.train)} rows: {' -> '.join(f'{loss:.3f}' for loss in losses)}"
    record_property(f"validation loss of {folder.name}", words)
    with capsys.disabled():  # a figure that the output of every test run shows
        sys.stdout.write(f"\n{folder.name}, validation loss on {words}\n")
    assert losses[-1] < losses[0] - 0.5
