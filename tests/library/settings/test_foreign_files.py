"""A settings file of another tool is answered with the same in our words, once, to paste."""

from pathlib import Path

import pytest

from slimtune.errors import SettingsError
from slimtune.settings import read_settings

LLAMA_FACTORY = """
### model
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all
quantization_bit: 4
dataset: identity,alpaca_en_demo
template: qwen
cutoff_len: 2048
max_samples: 1000
output_dir: saves/qwen
logging_steps: 10
save_steps: 500
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: reduce_lr_on_plateau
bf16: true
resume_from_checkpoint: null
no_such_thing: 3
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_target_modules:
  - q_proj
  - v_proj
micro_batch_size: 2
num_epochs: 4
val_set_size: 0.1
"""


def answered(text: str, folder: Path) -> str:
    file = folder / "theirs.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        read_settings("train_lora", "", ["--config", str(file)])
    return str(raised.value)


def pasted(said: str, folder: Path):
    """What is read of the lines behind the cure."""
    lines = said.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  do:"))
    file = folder / "ours.yaml"
    file.write_text("\n".join(lines[start + 1 :]) + "\n", encoding="utf-8")
    config, _ = read_settings("train_lora", "", ["--config", str(file)])
    return config


def test_a_file_of_llama_factory(tmp_path: Path) -> None:
    said = answered(LLAMA_FACTORY, tmp_path)
    assert said.startswith("theirs.yaml:3: 24 settings stand in no section\n")
    assert said.count("why:") == 1 and max(map(len, said.splitlines())) <= 80
    config = pasted(said, tmp_path)
    assert config.model.base_model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert config.model.quantization == "nf4" and config.model.prompt_template == "auto"
    assert config.lora.rank == 16 and config.lora.target_modules == ["all-linear"]
    assert config.lora.output_dir == tmp_path / "saves/qwen" and config.lora.method == "lora"
    assert config.training.max_length == 2048 and config.training.learning_rate == 1e-4
    assert config.training.batch_size == 1 and config.training.epochs == 3
    words = " ".join(said.replace("#", " ").split())
    for told in (
        "stage, do_train: leave it out",
        "dataset: `prepare_data.py --input",
        "save_steps: training.evaluations_per_epoch says",
        "overwrite_output_dir: --overwrite behind the command",
        "reduce_lr_on_plateau is no training.lr_scheduler",
        "no_such_thing: there is no such setting here",
    ):
        assert told in words
    assert "resume_from_checkpoint" not in said  # null says nothing


def test_a_file_of_axolotl(tmp_path: Path) -> None:
    said = answered(AXOLOTL, tmp_path)
    config = pasted(said, tmp_path)
    assert config.model.base_model == "NousResearch/Llama-3.2-1B"
    assert config.lora.rank == 32 and config.lora.target_modules == ["q_proj", "v_proj"]
    assert config.data.validation_ratio == 0.1 and config.training.batch_size == 2
    assert "sample_packing: leave it out" in said and "datasets: `prepare_data.py" in said


def test_a_setting_of_ours_without_its_section(tmp_path: Path) -> None:
    said = answered("learning_rate: 1e-4\n", tmp_path)
    assert said.startswith("theirs.yaml:1: learning_rate stands in no section\n")
    assert pasted(said, tmp_path).training.learning_rate == 1e-4
    assert "`training.learning_rate`" in answered("lora:\n  learning_rate: 1e-4\n", tmp_path)


def test_a_name_of_theirs_within_a_section(tmp_path: Path) -> None:
    said = answered("model: {model_name_or_path: x/y}\ntraining: {max_steps: 5}\n", tmp_path)
    assert "it is called `model.base_model` here" in said
    assert "training.epochs takes a part of one" in said
