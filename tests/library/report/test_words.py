"""The words of the reports: two languages that say the same with the same figures."""

from pathlib import Path
from string import Formatter

import pytest
import yaml

from slimtune.report import words as words_module
from slimtune.report.words import LANGUAGES, sentence, words_from

READ = yaml.safe_load(Path(words_module.__file__).with_name("words.yaml").read_text("utf-8"))
FREE = {"stage_measures", "names"}  # English reports show these names as they are noted


def sentences(entries: object, path: str = "") -> dict[str, str]:
    """Path -> text, of every text in a tree of words."""
    if isinstance(entries, str):
        return {path: entries}
    pairs = entries.items() if isinstance(entries, dict) else enumerate(entries)
    found = {}
    for key, value in pairs:
        if key not in FREE:
            found |= sentences(value, f"{path}.{key}")
    return found


def figures(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_both_languages_have_the_same_sentences_with_the_same_figures():
    english, chinese = sentences(READ["en"]), sentences(READ["zh"])
    assert english.keys() == chinese.keys() and len(english) > 80
    for path, text in english.items():
        assert text.strip() and chinese[path].strip(), path
        assert figures(text) == figures(chinese[path]), path


def test_a_missing_and_an_unknown_key_are_named():
    for changed in ({"verdict": None}, {"vredict": "x"}):
        entries = {**READ["en"], **changed}
        kept = {key: value for key, value in entries.items() if value is not None}
        with pytest.raises(TypeError, match="vr?e"):
            words_from("en", kept)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caution_is_told_with_its_figures(language):
    caution = {"kind": "few", "rows": 7}
    assert "7" in sentence(caution, language)
