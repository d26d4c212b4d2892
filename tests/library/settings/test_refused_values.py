"""A refused value is told in our words: what it must be, for every field of the schema."""

import pytest

from slimtune.config import Config
from slimtune.errors import SettingsError
from slimtune.settings import read_settings
from slimtune.settings.flags import section_fields

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
