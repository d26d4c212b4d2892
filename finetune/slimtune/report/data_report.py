"""The account of a preparation: its numbers, their text in Markdown, a picture."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slimtune.data.account import KINDS, Account
from slimtune.data.markdown import plain, table
from slimtune.data.report_plots import plot
from slimtune.data.report_tokens import token_numbers

JSON, MARKDOWN, PICTURE = FILES = ("data_report.json", "data_report.md", "data_report.png")
REJECTED = "rejected.jsonl"
DEFAULT_NAME = "train"
_ACCOUNT = ("rows_in", "kept", *KINDS.values())
_SHOWN_REASONS = 20
BATCH_SIZE = 16
_TOKENS = ("p50", "p90", "p99", "max")
_WORDS = {
    "whole": "within the limit",
    "shortened": "shortened at the start of the prompt",
    "split": "split into several conversations",
}


def numbers(account: Account, batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """Every count of the report as plain values, with tokens where they were counted.

    `batch_size` is the one that padding is reckoned for.
    """
    counts = account.numbers()
    names = ", ".join(source["file"] for source in account.sources)
    shapes = ", ".join(dict.fromkeys(source["shape"] for source in account.sources))
    tokens = {"tokens": token_numbers(account, batch_size)} if account.tokens else {}
    return {"input": names, "format": shapes} | counts | tokens


def prefix(name: str) -> str:
    """What stands before the names of the report's files: nothing for the default output."""
    return "" if name == DEFAULT_NAME else f"{name}_"


def text(numbers: Mapping[str, Any], before: str = "") -> str:
    """The same numbers in Markdown; whatever a file or a row says in them is inert."""
    sections = [
        f"# Data report: {plain(numbers['input'])}",
        _sources(numbers["sources"]),
        "Every row of the input is in exactly one line below: rows in = the sum of the others.",
        _shares("rows", {name: numbers[name] for name in _ACCOUNT}, numbers["rows_in"]),
        f"![lengths and languages]({before}{PICTURE})",
        "## Splits\n\n" + _shares("conversations", numbers["splits"]),
        "## Languages\n\n" + _shares("rows", numbers["languages"]),
        *_reasons(numbers["reasons"]),
        *_cleaning(numbers["cleaning"]),
        *(_tokens(numbers) if "tokens" in numbers else [_UNCOUNTED]),
        f"Rows set aside are in `{before}{REJECTED}`, each with its file, line and reason.",
    ]
    return "\n\n".join(sections) + "\n"


def write(numbers: Mapping[str, Any], folder: Path, name: str = DEFAULT_NAME) -> None:
    """data_report.json, its Markdown and its picture, for the output of this name."""
    before = prefix(name)
    content = json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
    # A reason may quote half a character (a lone surrogate), which UTF-8 does not hold.
    for file, words in ((JSON, content), (MARKDOWN, text(numbers, before))):
        (folder / f"{before}{file}").write_text(
            words, encoding="utf-8", errors="backslashreplace", newline="\n"
        )
    plot(numbers, folder / f"{before}{PICTURE}")


_UNCOUNTED = "Tokens were not counted: the base model's tokenizer was not at hand."


def _sources(sources: Iterable[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for source in sources for name in source))
    cells = [[plain(str(source.get(name, ""))) for name in names] for source in sources]
    return table([plain(name) for name in names], cells)


def _shares(head: str, counts: Mapping[str, int], whole: int | None = None) -> str:
    """Counts with their share of `whole`, or of their sum."""
    total = max(sum(counts.values()) if whole is None else whole, 1)
    cells = [[_word(name), f"{count:,}", f"{count / total:.1%}"] for name, count in counts.items()]
    return table(["", head, "share"], cells)


def _reasons(reasons: Mapping[str, int]) -> list[str]:
    if not reasons:
        return []
    shown = dict(list(reasons.items())[:_SHOWN_REASONS])
    more = len(reasons) - len(shown)
    cells = [[plain(reason), f"{count:,}"] for reason, count in shown.items()]
    section = "## Why rows were rejected\n\n" + table(["reason", "rows"], cells)
    return [section, *([f"{more} rarer reasons are in `{JSON}`."] if more else [])]


def _cleaning(cleaning: Mapping[str, int]) -> list[str]:
    cells = [[_word(step), f"{count:,}"] for step, count in cleaning.items()]
    return ["## Cleaning\n\n" + table(["step", "rows"], cells)] if cells else []


def _tokens(numbers: Mapping[str, Any]) -> list[str]:
    tokens = numbers["tokens"]
    rows = {"all": tokens, **tokens["splits"]}
    cells = [
        [name, *(f"{one[key]:,}" for key in _TOKENS), f"{one['supervised_share']:.1%}"]
        for name, one in rows.items()
    ]
    long = {_WORDS[name]: count for name, count in numbers["long_rows"].items()}
    if numbers["too_long"]:
        long["left out as too long"] = numbers["too_long"]
    return [
        "## Tokens a conversation\n\n" + table(["", *_TOKENS, "supervised"], cells),
        f"{tokens['total']:,} tokens in all. Training without padding computes "
        f"{tokens['padding_saved']:.1%} fewer positions than padded batches of "
        f"{tokens['batch_size']} in this order would.",
        *(["## Long rows\n\n" + _shares("rows", long)] if long else []),
    ]


def _word(name: str) -> str:
    return plain(name.replace("_", " "))
