"""A refused value is told in our words: what it must be, for every field of the schema."""

import pytest

from slimtune.config import Config
from slimtune.errors import SettingsError
from slimtune.settings import read_settings
from slimtune.settings.flags import flags_of, section_fields

FIELDS = [(section, name) for section in Config.model_fields for name in section_fields(section)]
WRONG = ("{a: 1}", "[]", "-1", ".5", "1e99", "true", "null", "no such word!", "[[1]]")


def refused(tmp_path, text: str, script: str = "train_lora", *words: str) -> str | None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        read_settings(script, "", ["--config", str(file), *words])
    except SettingsError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("batch-size", "0", "it must be a number of at least 1, or auto"),
        ("batch-size", "many", "it must be a whole number, or auto"),
        ("epochs", "0", "it must be a number above 0, or auto"),
        ("epochs", "few", "it must be a number, or auto"),
        ("rslora", "perhaps", "it must be true or false"),
        ("method", "qlora", "it must be lora, or full"),
        ("lora-r", "1.5", "it must be a whole number"),
        ("learning-rate", "fast", "it must be a number, or auto"),
    ],
)
def test_a_flag(flag: str, value: str, told: str, tmp_path) -> None:
    said = refused(tmp_path, "{}", "train_lora", f"--{flag}", value)
    assert said.splitlines()[1] == f"  why: {told}"


@pytest.mark.parametrize("section", Config.model_fields)
def test_no_sentence_of_pydantics_reaches_the_user(section: str, tmp_path) -> None:
    told = set()
    for name in section_fields(section):
        for value in WRONG:
            said = refused(tmp_path, f"{section}:\n  {name}: {value}\n")
            told |= {said} if said else set()
    assert told
    for said in told:
        why = said.splitlines()[1]
        for word in (
            "nput should",
            "valid ",
            "another value",
            "Field required",
            "Literal",
            "kwarg",
        ):
            assert word not in why, said


def test_a_name_that_is_none_is_told_what_a_name_is(tmp_path) -> None:
    said = refused(tmp_path, "{}", "prepare_data", "--output-name", "my rows")
    assert "a name of letters, digits, dots, dashes and underscores" in said


@pytest.mark.parametrize(
    ("script", "flag", "value", "why", "cure"),
    [
        ("knowledge_distillation", "quantised-student", "Q9", "the types are F32, F16", "Q4_K_M"),
        ("convert_to_gguf", "target-size", "small", "a size is written as 1.2GB", "1.2GB"),
        ("convert_to_gguf", "target-bits", "99", "a number of at most 32", "4.5"),
        ("convert_to_gguf", "max-loss", "0", "a number above 0", "0.01"),
        ("model_pruning", "target-params", "-1", "a number above 0", "500M"),
        ("evaluate_model", "generation-seed", "x", "a whole number", "7"),
    ],
)
def test_the_example_of_a_setting_that_is_null_is_a_value(
    script: str, flag: str, value: str, why: str, cure: str, tmp_path
) -> None:
    """It was null, which is what to write where the setting is not wanted at all."""
    flag = flag if flag in flags_of(script) else flag.partition("-")[2]
    said = refused(tmp_path, "{}", script, f"--{flag}", value)
    assert why in said and said.endswith(f"for example --{flag} {cure}")
    assert refused(tmp_path, "{}", script, f"--{flag}", cure) is None


def test_types_may_be_written_small(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("gguf: {quantization: [q8_0]}\n", encoding="utf-8")
    config, _ = read_settings("convert_to_gguf", "", ["--config", str(file)])
    assert config.gguf.quantization == ["Q8_0"]
    config, _ = read_settings("convert_to_gguf", "", ["--quantization", "q4_k_m,bf16"])
    assert config.gguf.quantization == ["Q4_K_M", "BF16"]
    config, _ = read_settings("knowledge_distillation", "", ["--quantised-student", "q4_k_m"])
    assert config.distillation.quantised_student == "Q4_K_M"
