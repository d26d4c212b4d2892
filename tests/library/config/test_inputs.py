"""Several inputs in one setting: what is a comma of the list, and what belongs to a name."""

from pathlib import Path

import pytest

from slimtune.config.inputs import Input, join_inputs, split_adapter, split_inputs

THERE = ("a.csv", "b.jsonl", "c,d.csv", "e:2", "f.csv:3", "g, h.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in THERE:
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a.csv", [("a.csv", 1)]),
        ("a.csv,b.jsonl", [("a.csv", 1), ("b.jsonl", 1)]),
        ("a.csv:2, b.jsonl:0.5", [("a.csv", 2), ("b.jsonl", 0.5)]),
        ("c,d.csv", [("c,d.csv", 1)]),
        ("a.csv,c,d.csv:2,b.jsonl", [("a.csv", 1), ("c,d.csv", 2), ("b.jsonl", 1)]),
        ("e:2", [("e:2", 1)]),
        ("e:2:2", [("e:2", 2)]),
        ("f.csv:3,g, h.csv", [("f.csv:3", 1), ("g, h.csv", 1)]),
        ("sub:1.5,", [("sub", 1.5)]),
        ("missing.csv,b.jsonl", [("missing.csv", 1), ("b.jsonl", 1)]),
        ("missing.csv:2", [("missing.csv", 2)]),
        (r"C:\data\rows.csv", [(r"C:\data\rows.csv", 1)]),
        (r"C:\data\rows.csv:2", [(r"C:\data\rows.csv", 2)]),
        (",", []),
    ],
)
def test_what_is_named(folder, written, found) -> None:
    inputs = split_inputs(written, folder)
    assert inputs == [Input(folder / name, weight) for name, weight in found]
    assert split_inputs(join_inputs(inputs)) == inputs


def test_a_name_that_no_system_allows_is_missing(folder) -> None:
    (one,) = split_inputs("x" * 5000, folder)
    assert one.path.name == "x" * 5000


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("base.gguf", ("base.gguf", None)),
        ("base.gguf+lora.gguf", ("base.gguf", "lora.gguf")),
        ("base.gguf+tuned/lora_adapter", ("base.gguf", "tuned/lora_adapter")),
        ("ollama:llama3.2:1b+lora.gguf", ("ollama:llama3.2:1b", "lora.gguf")),
        ("base.gguf+", ("base.gguf+", None)),
        ("models/c++/base", ("models/c++/base", None)),
        ("x+y.gguf", ("x+y.gguf", None)),
        ("i.gguf+j.gguf", ("i.gguf+j.gguf", None)),
        ("i.gguf+j.gguf+lora.gguf", ("i.gguf+j.gguf", "lora.gguf")),
        ("sub+lora.gguf", ("sub", "lora.gguf")),
        ("sub+lora", ("sub+lora", None)),
        (
            "http://127.0.0.1:8080/v1#a.gguf+b.gguf",
            ("http://127.0.0.1:8080/v1#a.gguf+b.gguf", None),
        ),
        ("none.gguf+a.gguf+b.gguf", ("none.gguf", "a.gguf+b.gguf")),
    ],
)
def test_a_base_and_its_adapter(folder, written, found) -> None:
    (folder / "i.gguf+j.gguf").write_text("x")
    assert split_adapter(written, folder) == found
