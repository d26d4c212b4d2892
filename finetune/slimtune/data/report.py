"""The account of a preparation: numbers by a pure function, their text by another."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimtune.data.account import KINDS, Account

FILES = ("data_report.json", "data_report.md")


def numbers(account: Account) -> dict[str, Any]:
    """Every count of the report, with the tokens of the rows where they were counted."""
    counts = account.numbers()
    names = ", ".join(source["file"] for source in account.sources)
    shapes = ", ".join(dict.fromkeys(source["shape"] for source in account.sources))
    tokens = {"tokens": token_numbers(account.tokens, account.supervised)} if account.tokens else {}
    return {"input": names, "format": shapes} | counts | tokens


def token_numbers(tokens: Sequence[int], supervised: Sequence[int]) -> dict[str, Any]:
    """Lengths in tokens under the training template, and the share of them that is supervised."""
    lengths = sorted(tokens)
    return {
        "p50": percentile(lengths, 0.5),
        "p90": percentile(lengths, 0.9),
        "p99": percentile(lengths, 0.99),
        "max": percentile(lengths, 1),
        "total": sum(lengths),
        "supervised_share": round(sum(supervised) / max(sum(lengths), 1), 4),
    }


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed; 0 of nothing."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0


def text(numbers: Mapping[str, Any]) -> str:
    """The same numbers in Markdown."""
    account = {name: numbers[name] for name in _ACCOUNT}
    sections = [
        f"# Data report: {numbers['input']}",
        f"Read as `{numbers['format']}`. Rows in = the sum of all below.",
        _table("rows", account),
        "## Splits\n\n" + _table("split", numbers["splits"]),
        "## Languages\n\n" + _table("language", numbers["languages"]),
    ]
    if numbers["reasons"]:
        sections.append("## Why rows were rejected\n\n" + _table("reason", numbers["reasons"]))
    if "tokens" in numbers:
        sections.append("## Tokens a row\n\n" + _table("tokens", numbers["tokens"]))
    sections.append("Rows set aside are in `rejected.jsonl`, each with its line and reason.")
    return "\n\n".join(sections) + "\n"


def write(numbers: Mapping[str, Any], folder: Path) -> None:
    for name, content in zip(FILES, (_json(numbers), text(numbers)), strict=True):
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


_ACCOUNT = ("rows_in", "kept", *KINDS.values())


def _table(head: str, values: Mapping[str, Any]) -> str:
    clean = {name.replace("_", " ").replace("|", "/"): value for name, value in values.items()}
    lines = [f"| {name} | {value} |" for name, value in clean.items()]
    return "\n".join([f"| {head} | |", "|---|---:|", *lines])


def _json(numbers: Mapping[str, Any]) -> str:
    return json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
