"""The account of a preparation: its numbers, their text in Markdown, a picture.

The report's picture: how long the conversations are, and which languages they speak.

Its words are Latin only: matplotlib's own font has no Chinese glyphs.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slimtune.data.account import ROW_KINDS, SPLITS, Account, token_numbers
from slimtune.report.markdown import markdown_table, plain

JSON, MARKDOWN, PICTURE = REPORT_FILES = ("data_report.json", "data_report.md", "data_report.png")
REJECTED = "rejected.jsonl"
DEFAULT_NAME = "train"
_ACCOUNT = ("rows_in", "kept", *ROW_KINDS.values())
_SHOWN_REASONS = 20
BATCH_SIZE = 16
_TOKENS = ("p50", "p90", "p99", "max")
_WORDS = {
    "whole": "within the limit",
    "shortened": "shortened at the start of the prompt",
    "split": "split into several conversations",
}


def report_numbers(account: Account, batch_size: int = BATCH_SIZE) -> dict[str, Any]:
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


def data_report_text(numbers: Mapping[str, Any], before: str = "") -> str:
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


def write_data_report(numbers: Mapping[str, Any], folder: Path, name: str = DEFAULT_NAME) -> None:
    """data_report.json, its Markdown and its picture, for the output of this name."""
    before = prefix(name)
    content = json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
    # A reason may quote half a character (a lone surrogate), which UTF-8 does not hold.
    for file, words in ((JSON, content), (MARKDOWN, data_report_text(numbers, before))):
        (folder / f"{before}{file}").write_text(
            words, encoding="utf-8", errors="backslashreplace", newline="\n"
        )
    plot(numbers, folder / f"{before}{PICTURE}")


_UNCOUNTED = "Tokens were not counted: the base model's tokenizer was not at hand."


def _sources(sources: Iterable[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for source in sources for name in source))
    cells = [[plain(str(source.get(name, ""))) for name in names] for source in sources]
    return markdown_table([plain(name) for name in names], cells)


def _shares(head: str, counts: Mapping[str, int], whole: int | None = None) -> str:
    """Counts with their share of `whole`, or of their sum."""
    total = max(sum(counts.values()) if whole is None else whole, 1)
    cells = [[_word(name), f"{count:,}", f"{count / total:.1%}"] for name, count in counts.items()]
    return markdown_table(["", head, "share"], cells)


def _reasons(reasons: Mapping[str, int]) -> list[str]:
    if not reasons:
        return []
    shown = dict(list(reasons.items())[:_SHOWN_REASONS])
    more = len(reasons) - len(shown)
    cells = [[plain(reason), f"{count:,}"] for reason, count in shown.items()]
    section = "## Why rows were rejected\n\n" + markdown_table(["reason", "rows"], cells)
    return [section, *([f"{more} rarer reasons are in `{JSON}`."] if more else [])]


def _cleaning(cleaning: Mapping[str, int]) -> list[str]:
    cells = [[_word(step), f"{count:,}"] for step, count in cleaning.items()]
    return ["## Cleaning\n\n" + markdown_table(["step", "rows"], cells)] if cells else []


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
        "## Tokens a conversation\n\n" + markdown_table(["", *_TOKENS, "supervised"], cells),
        f"{tokens['total']:,} tokens in all. Training without padding computes "
        f"{tokens['padding_saved']:.1%} fewer positions than padded batches of "
        f"{tokens['batch_size']} in this order would.",
        *(["## Long rows\n\n" + _shares("rows", long)] if long else []),
    ]


def _word(name: str) -> str:
    return plain(name.replace("_", " "))


_COLOURS = dict(zip(SPLITS, ("#4c72b0", "#dd8452", "#55a868"), strict=True))
_LANGUAGES = {"zh": "Chinese (zh)", "en": "English (en)"}
_MARKED = ("p50", "p90", "p99")


def plot(numbers: Mapping[str, Any], file: Path) -> None:
    """A PNG of two panels, or of the languages alone where no tokens were counted."""
    # A Figure of its own draws without pyplot: no window system, no state shared between runs.
    from matplotlib.figure import Figure

    panels = 2 if "tokens" in numbers else 1
    figure = Figure(figsize=(5.5 * panels, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if "tokens" in numbers:
        _plot_lengths(axes[0], numbers["tokens"])
    _plot_languages(axes[-1], numbers["languages"])
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _plot_lengths(axes: Any, tokens: Mapping[str, Any]) -> None:
    edges = tokens["histogram"]["edges"]
    widths = [right - left for left, right in zip(edges, edges[1:], strict=False)]
    floor = [0] * len(widths)
    for split in SPLITS:
        counts = tokens["histogram"][split]
        axes.bar(
            edges[:-1], counts, widths, floor, align="edge", color=_COLOURS[split], label=split
        )
        floor = [below + count for below, count in zip(floor, counts, strict=True)]
    top = max(floor)
    for place, name in enumerate(_MARKED):
        mark, height = tokens[name], top * (1.14 - 0.07 * place)
        side = "right" if mark > 0.7 * edges[-1] else "left"
        axes.axvline(mark, color="black", linestyle=":", linewidth=1)
        label = axes.text(mark, height, f" {name} {mark} ", fontsize=8, horizontalalignment=side)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})
    axes.set_ylim(0, top * 1.22)
    axes.set(xlabel="tokens a conversation", ylabel="conversations", title="Lengths")
    axes.legend(frameon=False)


def _plot_languages(axes: Any, languages: Mapping[str, int]) -> None:
    names = [_LANGUAGES.get(name, name) for name in languages]
    bars = axes.barh(names, list(languages.values()), color=_COLOURS["train"])
    total = max(sum(languages.values()), 1)
    axes.bar_label(bars, [f"{count / total:.1%}" for count in languages.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(xlabel="rows", title="Languages")
