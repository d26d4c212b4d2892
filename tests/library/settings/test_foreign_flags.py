"""Who comes from another tool and types its flags is answered with ours."""

import pytest

from slimtune.config import SCRIPTS, Config
from slimtune.errors import SettingsError
from slimtune.settings import read_settings
from slimtune.settings.flags import flags_of, section_fields
from slimtune.settings.foreign_flags import _OURS, ours


def answer(script: str, *words: str) -> str:
    with pytest.raises(SettingsError) as raised:
        read_settings(script, "", words)
    return str(raised.value)


@pytest.mark.parametrize(
    ("typed", "own"),
    [
        ("--lr", "--learning-rate"),
        ("--num-train-epochs", "--epochs"),
        ("--num_train_epochs", "--epochs"),
        ("--per-device-train-batch-size", "--batch-size"),
        ("--cutoff-len", "--max-length"),
        ("--max-seq-length", "--max-length"),
        ("--template", "--prompt-template"),
        ("--dataset", "--train-data"),
        ("--model-name-or-path", "--base-model"),
        ("--lora-rank", "--lora-r"),
        ("--load_in_4bit", "--use-quantization"),
        ("--overwrite_output_dir", "--overwrite"),
        ("--resume_from_checkpoint", "--resume"),
    ],
)
def test_a_trainers_flags(typed: str, own: str) -> None:
    said = answer("train_lora", typed, "1")
    assert f"{typed.lstrip('-')}: unknown flag" in said and f"it is called {own} here" in said
    assert f"it is called {own} here" in answer("train_lora", f"{typed}=1")


def test_what_another_script_has_is_told() -> None:
    assert "it is --quantization of convert_to_gguf.py" in answer("train_lora", "--outtype", "q8_0")
    assert "it is --ffn-ratio of" in answer("train_lora", "--ffn-ratio", "0.5")
    assert "it is called --input here" in answer("prepare_data", "--dataset", "x")
    assert "it is called --model-path here" in answer("model_pruning", "--model", "x")


def test_in_the_file_too(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("training: {per_device_train_batch_size: 4}\n", encoding="utf-8")
    said = answer("train_lora", "--config", str(file))
    assert "it is called `training.batch_size` here" in said


def test_every_name_of_ours_exists_and_no_name_of_theirs_is_one_of_ours() -> None:
    flags = {flag for script in SCRIPTS for flag in flags_of(script)}
    assert not flags & _OURS.keys()
    for theirs, settings in _OURS.items():
        assert ours(theirs.replace("-", "_").upper()) == settings
        for one in settings:
            section, _, name = one.partition(".")
            own = one in ("--overwrite", "--resume")
            assert own or name in section_fields(section), (theirs, Config.model_fields[section])
