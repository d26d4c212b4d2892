"""What the documents say without condition has a test that holds it, or says when it is so.

README, QUICK_START and SECURITY: each sentence with one of `ABSOLUTE`. OPTIMIZATION_GUIDE: its
first chapter so, and elsewhere the sentences with one of `STRONGEST`. A sentence with such a word
is either held by a test, or is no promise: claims.yaml says which, by a phrase of the sentence.
"""

import re
from collections.abc import Iterator

import pytest
import yaml
from documents import ROOT, prose_of

ABSOLUTE = re.compile(r"\b(never|no|none|nothing|always|each|every|all|any)\b", re.I)
STRONGEST = re.compile(r"\b(never|nothing|always)\b", re.I)
DOCUMENTS = {"README": ABSOLUTE, "QUICK_START": ABSOLUTE, "SECURITY": ABSOLUTE}
DOCUMENTS |= {"OPTIMIZATION_GUIDE": STRONGEST}
GUIDE, PROMISES = "OPTIMIZATION_GUIDE", "## What makes it different"

TABLE = yaml.safe_load((ROOT / "tests/claims.yaml").read_text(encoding="utf-8"))
HELD, PLAIN = TABLE["held"], TABLE["plain"]
PHRASES = [*PLAIN, *(phrase for phrases in HELD.values() for phrase in phrases)]
# The settings of the guide are those of the schema, whose own tests hold their words.
_GENERATED = re.compile(r"<!-- settings:.*?<!-- end of settings -->", re.DOTALL)


def sentences(text: str) -> Iterator[str]:
    """Sentences of running text and of list points, and rows of tables, each in one line."""
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-|#]|\d\.))", text):
        line = " ".join(part.split())
        yield from [line] if line.startswith("|") else re.split(r"(?<=[.!?:])\s+", line)


def absolute(document: str) -> list[str]:
    text = _GENERATED.sub("", prose_of(ROOT / f"{document}.md"))
    found = [one for one in sentences(text) if DOCUMENTS[document].search(without_code(one))]
    if document == GUIDE:
        chapter = text.partition(PROMISES)[2].partition("\n## ")[0]
        assert chapter, f"{document} has lost its chapter {PROMISES!r}"
        found += [one for one in sentences(chapter) if ABSOLUTE.search(without_code(one))]
    return found


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_said_without_condition_is_held_by_a_test(document: str) -> None:
    for sentence in absolute(document):
        assert any(phrase in sentence for phrase in PHRASES), f"no test holds: {sentence}"


def test_every_phrase_still_stands_in_a_document() -> None:
    said = [sentence for document in DOCUMENTS for sentence in absolute(document)]
    for phrase in PHRASES:
        assert any(phrase in sentence for sentence in said), f"no document says {phrase!r} now"


@pytest.mark.parametrize("test", HELD)
def test_the_test_that_is_named_is_there(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(rf"^ *def {name}\(", (ROOT / "tests" / file).read_text("utf-8"), re.M), test
