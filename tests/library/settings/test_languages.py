"""Settings told in Chinese: each has its words, and every line fits a terminal."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len

from slimtune.config import SCRIPTS, Config, catalogues, chinese
from slimtune.settings import PROJECT, read_settings, settings_tables, written
from slimtune.settings.flags import fields_of, section_fields
from slimtune.settings.languages import (
    OPTIONS,
    asked_language,
    of_script,
    of_section,
    of_setting,
)
from slimtune.wrapping import wrap

WORDS = yaml.safe_load(
    (PROJECT / "finetune/slimtune/config/chinese.yaml").read_text(encoding="utf-8")
)
CHOSEN = yaml.safe_load(
    (PROJECT / "finetune/slimtune/config/catalogues.yaml").read_text(encoding="utf-8")
)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def texts(words: object) -> list[str]:
    if isinstance(words, dict):
        return [text for inner in words.values() for text in texts(inner)]
    return [words]


def test_every_setting_and_every_choice_has_its_chinese() -> None:
    settings = {section: set(section_fields(section)) for section in Config.model_fields}
    assert {section: set(told) for section, told in WORDS["settings"].items()} == settings
    assert WORDS["sections"].keys() == settings.keys()
    assert {name: set(told) for name, told in WORDS["catalogues"].items()} == {
        name: set(catalogues.names(name)) for name in CHOSEN
    }
    assert WORDS["scripts"].keys() == SCRIPTS.keys()
    assert WORDS["run"].keys() == set(OPTIONS)


def test_it_is_chinese_with_chinese_punctuation() -> None:
    for text in texts(WORDS):
        assert _CHINESE.search(text) or "、" in text, text  # a list of columns has no words
        assert not re.search(r"[\u4e00-\u9fff][,;:?!]|[,;?!][\u4e00-\u9fff]", text), text
        assert not text.endswith(("，", "；", " ")), text


def test_numbers_and_words_to_type_are_those_of_the_english_help() -> None:
    """What a user types or reads off must be the same in both languages."""
    for section in Config.model_fields:
        for name, field in section_fields(section).items():
            told = of_setting(section, name, field, "zh")
            typed = r"--[a-z][a-z-]+|\b\w+\.(?:jsonl?|png|csv|yaml|md)\b|https?://\S+?(?=[;,，；])"
            for word in re.findall(typed, field.description):
                assert word in told, f"{section}.{name}: {word}"


_REMARK = re.compile(r" +(# .*)")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_in_chinese_fits_eighty_columns(script: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    doc = importlib.import_module(script).__doc__
    with pytest.raises(SystemExit) as ended:
        read_settings(script, doc, ["--language", "zh", "-h"])
    shown = capsys.readouterr().out
    assert not ended.value.code
    assert shown.startswith("用法：") and "本次运行" in shown and "usage:" not in shown
    about = shown.partition("\n\n读取")[0]
    assert f"python finetune/{script}.py\n" in about and " # " not in about
    for section, name, _ in fields_of(script):
        start = WORDS["settings"][section][name][:6]
        assert start in shown, f"{section}.{name}"
    wide = [line for line in shown.splitlines() if cell_len(line) > 80]
    assert not wide, wide


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_in_english_fits_eighty_columns_and_its_commands_paste(script: str) -> None:
    doc = ast.get_docstring(ast.parse((PROJECT / f"finetune/{script}.py").read_text("utf-8")))
    shown = of_script(script, doc, "en")
    assert not [line for line in shown.splitlines() if len(line) > 80]
    assert re.sub(r"[\s\\]", "", _REMARK.sub("", shown)) == re.sub(
        r"[\s\\]", "", _REMARK.sub("", doc)
    )
    remarks = [_REMARK.findall(text) for text in (shown, doc)]
    assert remarks[0] == remarks[1]
    commands = [shlex.split(one) for one in _commands(shown)]
    assert commands == [shlex.split(one) for one in _commands(doc)] and commands


def _commands(doc: str) -> list[str]:
    lines = _REMARK.sub("", doc).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("    python ")]


def test_the_printed_config_has_chinese_comments_and_reads_back(tmp_path: Path) -> None:
    config, _ = read_settings("train_lora", "", ["--language", "zh", "--lora-r", "3"])
    printed = written.config_yaml(config, script="train_lora")
    comments = [line for line in printed.splitlines() if line.lstrip().startswith("#")]
    assert all(_CHINESE.search(line) or "schema" in line or "、" in line for line in comments)
    assert not any(cell_len(line) > 100 for line in comments)
    file = tmp_path / "config.yaml"
    file.write_text(printed, encoding="utf-8")
    again, _ = read_settings("train_lora", "", ["--config", str(file)])
    assert (again.lora, again.training) == (config.lora, config.training)
    assert again.evaluation.language == "zh"


def test_the_language_of_help_is_known_before_the_settings_are() -> None:
    assert asked_language(["--language", "zh", "--epochs"]) == "zh"
    assert asked_language(["--language=zh", "--nonsense"]) == "zh"
    assert [asked_language(words) for words in ([], ["--language"], ["--language", "fr"])] == [
        "en",
        "en",
        "en",
    ]
    assert of_section("lora", "en").startswith("The adapter")
    assert chinese.of_section("lora").startswith("适配器")


def test_no_line_starts_with_a_comma_or_ends_with_a_bracket() -> None:
    assert list(wrap("一二三，四五", 6)) == ["一二", "三，四", "五"]
    assert list(wrap("一二（三）四", 6)) == ["一二", "（三）", "四"]
    assert list(wrap("一二 abc，四", 8)) == ["一二", "abc，四"]


@pytest.mark.parametrize("language", settings_tables.GUIDES)
def test_the_guides_reference_is_the_rendered_schema(language: str) -> None:
    guide = PROJECT / settings_tables.GUIDES[language]
    text = guide.read_text(encoding="utf-8")
    assert text == settings_tables.with_reference(guide, language), (
        "run python -m slimtune.settings from finetune/"
    )
    shown = text.partition(settings_tables.START)[2]
    for section in Config.model_fields:
        part = shown.partition(f"### `{section}`")[2].partition("\n#")[0]
        assert part.count("\n| `") == len(section_fields(section)), section
    assert not re.search(r"(?<!\\)\|.*<[^b]", shown.partition(settings_tables.END)[0])
