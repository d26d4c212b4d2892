"""The account of a preparation: numbers by a pure function, their text by another."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slimtune.data.formats import Message
from slimtune.data.text import language

FILES = ("data_report.json", "data_report.md")
_IGNORED = -100


def numbers(
    file: Path,
    shape: str,
    splits: Mapping[str, Sequence[dict[str, Any]]],
    rejected: Sequence[dict[str, Any]],
    encode: Callable[[list[Message]], Any] | None = None,
) -> dict[str, Any]:
    """Every count of the report; rows_in = kept + rejected + duplicates + leaks."""
    kept = [row for rows in splits.values() for row in rows]
    kinds = Counter(entry["kind"] for entry in rejected)
    reasons = Counter(entry["reason"] for entry in rejected if entry["kind"] == "rejected")
    counts = {
        "input": file.name,
        "format": shape,
        "rows_in": len(kept) + len(rejected),
        "kept": len(kept),
        "rejected": kinds["rejected"],
        "duplicates": kinds["duplicate"],
        "leaks": kinds["leak"],
        "reasons": dict(reasons.most_common()),
        "splits": {name: len(rows) for name, rows in splits.items()},
        "languages": dict(Counter(_language(row) for row in kept).most_common()),
    }
    return counts | ({"tokens": token_numbers(kept, encode)} if encode else {})


def token_numbers(
    rows: Sequence[dict[str, Any]], encode: Callable[[list[Message]], Any]
) -> dict[str, Any]:
    """Lengths in tokens under the training template, and the share of them that is supervised."""
    lengths, supervised = [], 0
    for row in rows:
        if encoded := encode(row["messages"]):
            lengths.append(len(encoded["input_ids"]))
            supervised += sum(label != _IGNORED for label in encoded["labels"])
    lengths.sort()
    return {
        "p50": percentile(lengths, 0.5),
        "p90": percentile(lengths, 0.9),
        "p99": percentile(lengths, 0.99),
        "max": percentile(lengths, 1),
        "total": sum(lengths),
        "supervised_share": round(supervised / max(sum(lengths), 1), 4),
        "too_long": len(rows) - len(lengths),
    }


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed; 0 of nothing."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0


def text(numbers: Mapping[str, Any]) -> str:
    """The same numbers in Markdown."""
    account = {name: numbers[name] for name in _ACCOUNT}
    sections = [
        f"# Data report: {numbers['input']}",
        f"Read as `{numbers['format']}`. Rows in = kept + rejected + duplicates + leaks.",
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


_ACCOUNT = ("rows_in", "kept", "rejected", "duplicates", "leaks")


def _language(row: Mapping[str, Any]) -> str:
    return language("\n".join(message["content"] for message in row["messages"]))


def _table(head: str, values: Mapping[str, Any]) -> str:
    clean = {name.replace("_", " ").replace("|", "/"): value for name, value in values.items()}
    lines = [f"| {name} | {value} |" for name, value in clean.items()]
    return "\n".join([f"| {head} | |", "|---|---:|", *lines])


def _json(numbers: Mapping[str, Any]) -> str:
    return json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
