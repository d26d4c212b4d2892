"""A length that a model cannot follow is lowered with a word, or refused where it was chosen."""

import json
from pathlib import Path

import pytest

from slimtune.config import Config, Training
from slimtune.errors import SettingsError
from slimtune.models.positions import followed, longest_here, positions_of, within_positions


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 128}, 128),
        ({}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}, 512),
        # vicuna-7b-v1.5-16k names the positions before scaling
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4}}, 16384),
        # Llama-3.1 names those after
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        # Qwen2.5 with YaRN, as its card has it
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
    ],
)
def test_positions_of(config, expected) -> None:
    assert positions_of(config) == expected


def folder_with(folder: Path, positions: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    return folder


def test_the_default_is_lowered_to_the_shortest_of_the_models(tmp_path, caplog) -> None:
    models = [folder_with(tmp_path / str(most), most) for most in (2048, 128, 256)]
    found = within_positions(Config(), *models)
    assert found.training.max_length == 128
    assert caplog.text.count("caution: training.max_length in config.yaml is") == 2
    assert within_positions(found, *models) is found or found.training.max_length == 128
    assert within_positions(Config(), models[0]) == Config()


def test_a_length_of_ones_own_is_refused(tmp_path, caplog) -> None:
    model = folder_with(tmp_path / "short", 128)
    with pytest.raises(SettingsError, match="max_length: 200, and .*short follows 128") as caught:
        within_positions(Config(training=Training(max_length=200)), model)
    assert "to 128" in caught.value.cure
    for fine in (128, 60):
        config = Config(training=Training(max_length=fine))
        assert within_positions(config, model) is config
    assert not caplog.text


def test_a_model_that_is_not_here_is_not_fetched_for_it(tmp_path) -> None:
    assert longest_here(Config(), "owner/name") == 512
    assert longest_here(Config(), str(folder_with(tmp_path / "short", 128))) == 128


def test_each_setting_has_its_own_default(tmp_path) -> None:
    about = {"max_position_embeddings": 100}
    assert followed("pruning.calibration_length", 256, about, tmp_path) == 100
    with pytest.raises(SettingsError, match="calibration_length: 512"):
        followed("pruning.calibration_length", 512, about, tmp_path)
