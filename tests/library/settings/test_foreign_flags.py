"""Who comes from another tool and types its flags is answered with ours."""

import pytest

from slimtune.config import SCRIPTS, Config
from slimtune.errors import SettingsError
from slimtune.settings import read_settings
from slimtune.settings.flags import flags_of, section_fields
from slimtune.settings.foreign_flags import _read, instead, our_value, ours


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
    said = answer("train_lora", "--lora_target", "q_proj,v_proj")
    assert "it is called --lora-target-modules here" in said
    assert "it is --ffn-ratio of" in answer("train_lora", "--ffn-ratio", "0.5")
    assert "it is called --input here" in answer("prepare_data", "--dataset", "x")
    assert "it is called --model-path here" in answer("model_pruning", "--model", "x")


def test_in_the_file_too(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("training: {per_device_train_batch_size: 4}\n", encoding="utf-8")
    said = answer("train_lora", "--config", str(file))
    assert "it is called `training.batch_size` here" in said


@pytest.mark.parametrize(
    ("typed", "own"),
    [
        (("--quantization_bit", "4"), "--use-quantization nf4"),
        (("--load_in_4bit",), "--use-quantization nf4"),
        (("--load-in-8bit=True",), "--use-quantization int8"),
        (("--lora_target", "all"), "--lora-target-modules all-linear"),
        (("--template", "qwen"), "--prompt-template auto"),
        (("--template", "alpaca"), "--prompt-template alpaca"),
        (("--use_gradient_checkpointing", "unsloth"), "--activation-checkpointing true"),
    ],
)
def test_a_value_of_theirs_is_said_as_ours(typed: tuple[str, ...], own: str) -> None:
    assert f"it is {own} here" in answer("train_lora", *typed)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--packing", "leave it out: rows are laid end to end without padding"),
        ("--flash_attn", "leave it out: flash-attn is used"),
        ("--bf16", "leave it out: --dtype auto takes bfloat16"),
        ("--max_steps", "--epochs takes a part of one"),
        ("--save_steps", "--evaluations-per-epoch says how often"),
        ("--warmup_steps", "--warmup-ratio is a share of all steps"),
        ("--push_to_hub", "`hf upload USER/NAME FOLDER .` does it afterwards"),
        ("--deepspeed", "finetune/launch/fsdp_gpus.yaml"),
        ("--gpu", "CUDA_VISIBLE_DEVICES=1"),
        ("--stage", "leave it out"),
        ("--trust_remote_code", "no code that comes with a model is run"),
    ],
)
def test_what_has_no_setting_here_is_told_and_not_guessed(typed: str, told: str) -> None:
    said = answer("train_lora", typed, "1")
    assert told in said and "did you mean" not in said and "see --help" not in said


def test_our_own_names_may_have_underscores() -> None:
    words = ("--learning_rate", "2e-4", "--lora_alpha=32", "--dry_run", "--output_dir", "a_b")
    config, _ = read_settings("train_lora", "", words)
    assert config.training.learning_rate == 2e-4 and config.lora.alpha == 32
    assert config.options.dry_run and config.lora.output_dir.name == "a_b"


def test_the_script_is_named_that_a_setting_is_for() -> None:
    assert "it is --validation-ratio of prepare_data.py" in answer("train_lora", "--val_size", ".1")


def test_every_name_of_ours_exists_and_no_name_of_theirs_is_one_of_ours() -> None:
    flags = {flag for script in SCRIPTS for flag in flags_of(script)}
    names, sentences = _read()["ours"], _read()["sentences"]
    assert not flags & (names.keys() | sentences.keys()) and not names.keys() & sentences.keys()
    for theirs, settings in names.items():
        assert list(ours(theirs.replace("-", "_").upper())) == settings
        for one in settings:
            assert one in ("--overwrite", "--resume") or exists(one), theirs
    for theirs in sentences:
        instead(theirs, lambda one: one if exists(one) else pytest.fail(one))


def test_every_value_in_their_place_is_one_of_ours() -> None:
    for theirs, values in _read()["values"].items():
        for value in values:
            section, _, name = ours(theirs)[-1].partition(".")
            own = our_value(theirs, value)
            Config.model_validate({section: {name: [own] if name == "target_modules" else own}})


def exists(setting: str) -> bool:
    section, _, name = setting.partition(".")
    return name in section_fields(section)
