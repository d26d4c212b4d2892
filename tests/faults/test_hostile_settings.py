"""A config.yaml that somebody else packed, and values that no setting can have: exit 2, at once."""

from itertools import pairwise

import pytest
from running import refused, run

from slimtune.config import Config
from slimtune.settings.yaml_file import scalar

pytestmark = pytest.mark.faults

NINES = ",".join(["*{0}"] * 9)
BOMB = "".join(f"    - &{b} [{NINES.format(a)}]\n" for a, b in pairwise("abcdefghi"))
FILES = {
    "an object of Python's": (
        b"model:\n  base_model: !!python/object/apply:os.system ['touch CANARY']\n",
        ":2: cannot be read as YAML",
        "the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    "a name of Python's": (b"lora:\n  rank: !!python/name:os.system\n", ":2:", "the tag"),
    "python under another name": (
        b"%TAG ! tag:yaml.org,2002:\n---\nmodel: !python/object:os.x {}\n",
        ":3: cannot",
        "python/object:os.x",
    ),
    "a number that is none": (b"lora:\n  rank: !!int foo\n", ":2:", "yaml.org,2002:int"),
    "a time that is none": (b"model:\n  dtype: !!timestamp 2020-13-45\n", ":2:", "timestamp"),
    "a section in itself": (b"model: &m\n  base_model: *m\n", ":2:", "alias *m"),
    "a list in itself": (b"lora:\n  target_modules: &a [*a]\n", ":2:", "alias *a"),
    "an alias bomb": (
        f"lora:\n  target_modules:\n    - &a [x,x,x,x,x,x,x,x,x]\n{BOMB}".encode(),
        ":4:",
        "alias *a repeats a list",
    ),
    "5,000 brackets": (b"model:\n  base_model: " + b"[" * 5000, ":2:", "deeper than 8 levels"),
    "5,000 open sections": (b"model: " + b"{a: " * 5000, ":1:", "deeper than 8 levels"),
    "100 indented sections": (
        b"".join(b" " * n + b"a:\n" for n in range(100)),
        ":9:",
        "deeper than 8 levels",
    ),
    "NUL": (b"model:\n  base_model: a\0b\n", ":2:", "U+0000"),
    "NUL in quotes": (b'model:\n  base_model: "a\\0b"\n', ":2:", "no setting holds the character"),
    "half a character": (b'model:\n  system_prompt: "\\ud800"\n', ":2:", "U+D800"),
    "words to the terminal": (b'model:\n  "\\e[2J": 3\n', ":2:", "U+001B"),
    "Latin-1": (b"model:\n\n  base_model: caf\xe9\n", ":3:", "byte 0xE9 is not UTF-8"),
    "UTF-16": ("model:\n".encode("utf-16"), ":1:", "is not UTF-8"),
    "a list for a name": (b"model:\n  ? [a, b]\n  : 3\n", ":2:", "a name is one word"),
    "a list for a name of a value": (b"lora:\n  rank: {? [a] : 3}\n", ":2:", "a name is one word"),
    "a name without end": (b"model:\n  ? " + b"a" * 5000 + b"\n  : 3\n", ":2:", "a name is one"),
    "more than settings": (
        b"# x\n" * 300_000,
        "settings.yaml: cannot",
        "more than 1,048,576 bytes",
    ),
    "5,000 digits": (b"lora:\n  rank: " + b"9" * 5000, ":2: inf is no lora.rank", "finite"),
    "300 digits": (b"lora:\n  rank: " + b"9" * 300, "… is no lora.rank", "2,147,483,647"),
    "a word of a million": (b"model:\n  dtype: " + b"a" * 999_999, "aaa… is no model.dtype", ""),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_is_refused_with_its_line(kind, tmp_path, monkeypatch) -> None:
    content, *words = FILES[kind]
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    error = "\n".join(refused(2, words[0], "train_lora", "--config", file, "--print-config"))
    assert all(word in error for word in words), error
    assert len(error) < 1500 and error.replace("\n", "").isprintable()
    assert not (tmp_path / "CANARY").exists()


def test_an_alias_of_a_value_is_as_good_as_the_value(tmp_path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model:\n  dtype: &type float32\n  device: cpu\nlora:\n  targets: *type\n")
    assert "lora.targets" in run("train_lora", "--config", file, "--print-config").err
    file.write_text("lora:\n  rank: &n 4\n  alpha: *n\n")
    assert "alpha: 4" in run("train_lora", "--config", file, "--print-config").out


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seed", -1),
        ("seed", 2**32 - 1),
        ("seed", 2**63),
        ("seed", "9" * 5000),
        ("lora-r", 2**31),
        ("max-length", 2**63),
        ("batch-size", 10**19),
        ("epochs", 1e300),
        ("epochs", "9" * 400),
    ],
)
def test_numbers_that_nothing_can_count_are_refused(flag, value) -> None:
    refused(2, f"--{flag}", "train_lora", f"--{flag}={value}", "--print-config")


def test_a_size_and_a_weight_beyond_all_numbers_are_refused(tmp_path) -> None:
    huge = f"{'9' * 400}GB"
    refused(2, "--target-size", "convert_to_gguf", "--target-size", huge, "--print-config")
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\na,b\n")
    refused(3, "rows.csv:9999999", "prepare_data", "--input", f"{rows}:9999999", "--dry-run")


def test_every_whole_number_of_the_schema_has_an_end() -> None:
    """Without one a number of 19 digits comes as far as torch or the disk."""
    for section, schema in Config.model_json_schema()["$defs"].items():
        for name, field in schema["properties"].items():
            for kind in field.get("anyOf", [field]):
                ends = kind.keys() & {"maximum", "exclusiveMaximum"}
                assert kind.get("type") != "integer" or ends, f"{section}.{name}"


def test_a_zero_in_front_makes_no_octal_number() -> None:
    assert (scalar("010"), scalar("09"), scalar("-007")) == (10, 9, -7)
