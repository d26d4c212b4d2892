"""The data report: the numbers of a preparation as JSON, as Markdown in words, and as a picture.

The picture shows how long the conversations are and which languages they speak; its words are
English always, since matplotlib's own font has no Chinese glyphs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import write_json, write_page
from slimtune.console import decoration
from slimtune.masking import masked_in
from slimtune.report.markdown import markdown_table, plain
from slimtune.report.words import LANGUAGES, DataWords

JSON, MARKDOWN, PICTURE = REPORT_FILES = ("data_report.json", "data_report.md", "data_report.png")
REJECTED = "rejected.jsonl"
DEFAULT_NAME = "train"
_SHOWN_REASONS = 20
_LONGEST = 1000  # characters of a turn that are shown
MOST_PER_CHARACTER = 2  # tokens: a tokenizer that knows no Chinese needs 3, its bytes
_TOKENS = ("p50", "p90", "p99", "max")


def prefix(name: str) -> str:
    """What stands before the names of the report's files: nothing for the default output."""
    return "" if name == DEFAULT_NAME else f"{name}_"


def data_report_text(
    numbers: Mapping[str, Any],
    before: str = "",
    language: str = "en",
    examples: Iterable[Mapping[str, Any]] = (),
) -> str:
    """The same numbers in Markdown; whatever a file or a row says in them is inert."""
    words = LANGUAGES[language].data_report
    account = {told: numbers[name] for name, told in words.account.items()}
    splits, languages = numbers["splits"], numbers["languages"]
    sections = [
        words.title.format(input=plain(numbers["input"])),
        _sources(numbers["sources"], words),
        words.balance,
        _shares(words.rows, account, words, numbers["rows_in"]),
        f"![{words.picture}]({before}{PICTURE})",
        f"{words.splits}\n\n{_shares(words.conversations, splits, words)}",
        *_floor(numbers, words),
        *_leakage(numbers.get("leakage"), words),
        f"{words.languages}\n\n{_shares(words.rows, languages, words)}",
        *_reasons(numbers["reasons"], words),
        *_unused(numbers["unused_columns"], words),
        *_cleaning(numbers["cleaning"], words),
        *_tokens(numbers, words),
        *_examples(examples, words),
        words.aside.format(file=f"{before}{REJECTED}"),
    ]
    return "\n\n".join(sections) + "\n"


def write_data_report(
    numbers: Mapping[str, Any],
    folder: Path,
    name: str = DEFAULT_NAME,
    language: str = "en",
    examples: Iterable[Mapping[str, Any]] = (),
) -> None:
    """data_report.json, its Markdown and its picture, for the output of this name.

    `numbers` are those of the preparation's account, as plain values; `examples` are rows of
    {"file", "line", "pieces": [(text, supervised)]} for the page alone.
    """
    before = prefix(name)
    write_json(folder / f"{before}{JSON}", masked_in(numbers))
    page = data_report_text(numbers, before, language, examples)
    write_page(folder / f"{before}{MARKDOWN}", page)
    with decoration(f"{before}{PICTURE}"):
        plot(numbers, folder / f"{before}{PICTURE}")


def _sources(sources: Iterable[Mapping[str, Any]], words: DataWords) -> str:
    """A row a file, with every column that one of them has."""
    names = list(dict.fromkeys(name for source in sources for name in source))
    cells = [[plain(str(source.get(name, ""))) for name in names] for source in sources]
    return markdown_table([_word(name, words) for name in names], cells)


def _shares(
    head: str, counts: Mapping[str, int], words: DataWords, whole: int | None = None
) -> str:
    """Counts with their share of `whole`, or of their sum."""
    total = max(sum(counts.values()) if whole is None else whole, 1)
    cells = [
        [_word(name, words), f"{count:,}", f"{count / total:.1%}"] for name, count in counts.items()
    ]
    return markdown_table(["", head, words.share], cells)


def _floor(numbers: Mapping[str, Any], words: DataWords) -> list[str]:
    """That the test got more rows than its share, and what chance does to a small one."""
    rows, told = numbers["splits"].get("test", 0), []
    if "test_by_share" in numbers:
        told.append(words.floor.format(rows=rows, share=numbers["test_by_share"]))
    if "test_chance" in numbers:
        told.append(words.chance.format(rows=rows, points=numbers["test_chance"]))
    return told


def _leakage(leakage: Mapping[str, Any] | None, words: DataWords) -> list[str]:
    """What the test shares with training; nothing where there is no test."""
    if not leakage:
        return []
    cells = [
        [told, f"{leakage[count]:,}", f"{leakage[of]:,}", f"{leakage[count] / leakage[of]:.1%}"]
        for told, count, of in (
            (words.shared_answers, "answers_in_training", "test_rows"),
            (words.alike.format(**leakage), "questions_alike", "questions_compared"),
        )
    ]
    sections = [f"{words.leakage}\n\n{markdown_table(['', *words.leakage_columns], cells)}"]
    if leakage["training_compared"] < 1:
        sections.append(words.training_sampled.format(**leakage))
    return [*sections, words.leakage_cures.format(**leakage)]


def _reasons(reasons: Mapping[str, int], words: DataWords) -> list[str]:
    """The most frequent reasons, and how many others there are; nothing where none was needed."""
    if not reasons:
        return []
    shown = dict(list(reasons.items())[:_SHOWN_REASONS])
    cells = [[plain(reason), f"{count:,}"] for reason, count in shown.items()]
    sections = [f"{words.reasons}\n\n{markdown_table([words.reason, words.rows], cells)}"]
    more = len(reasons) - len(shown)
    if more:
        sections.append(words.more_reasons.format(count=more, file=JSON))
    return sections


def _unused(columns: Mapping[str, Mapping[str, float]], words: DataWords) -> list[str]:
    """Columns that no shape reads, with how full and how long they are."""
    if not columns:
        return []
    cells = [
        [plain(name), f"{one['filled']:.1%}", f"{one['characters']:,}"]
        for name, one in columns.items()
    ]
    sections = [f"{words.unused}\n\n{markdown_table(words.unused_columns, cells)}"]
    for name, one in columns.items():
        if "values" in one:
            counts = [[plain(value), f"{count:,}"] for value, count in one["values"].items()]
            sections.append(markdown_table([plain(name), words.rows], counts))
    return sections


def _examples(examples: Iterable[Mapping[str, Any]], words: DataWords) -> list[str]:
    """Rows as the model will see them, inert, each answer between two brackets."""
    sections = []
    for one in examples:
        texts = (
            f"⟦{plain(text, _LONGEST)}⟧" if supervised else plain(text, _LONGEST)
            for text, supervised in one["pieces"]
        )
        where = words.example.format(file=plain(one["file"]), line=one["line"])
        sections.append(f"{where}\n\n> {'<br>'.join(texts)}")
    return [words.examples, *sections] if sections else []


def _cleaning(cleaning: Mapping[str, int], words: DataWords) -> list[str]:
    if not cleaning:
        return []
    cells = [[_word(step, words), f"{count:,}"] for step, count in cleaning.items()]
    return [f"{words.cleaning}\n\n{markdown_table([words.step, words.rows], cells)}"]


def _tokens(numbers: Mapping[str, Any], words: DataWords) -> list[str]:
    """Lengths by split, what padding would cost, and what became of long rows."""
    if "tokens" not in numbers:
        return [words.uncounted]
    tokens = numbers["tokens"]
    cells = []
    for name, one in {words.all: tokens, **tokens["splits"]}.items():
        lengths = [f"{one[key]:,}" for key in _TOKENS]
        cells.append([_word(name, words), *lengths, f"{one['supervised_share']:.1%}"])
    headers = ["", *(_word(key, words) for key in _TOKENS), words.supervised]
    sections = [f"{words.tokens}\n\n{markdown_table(headers, cells)}", words.total.format(**tokens)]
    each = tokens.get("per_chinese_character", 0)
    if each > MOST_PER_CHARACTER:
        sections.append(words.bytes.format(each=each))
    long = {words.lengths[name]: count for name, count in numbers["long_rows"].items()}
    if numbers["too_long"]:
        long[words.lengths["too_long"]] = numbers["too_long"]
    if long:
        sections.append(f"{words.long_rows}\n\n{_shares(words.rows, long, words)}")
    return sections


def _word(name: str, words: DataWords) -> str:
    """A name as the language has it, or else as it was noted."""
    return plain(words.names.get(name, name).replace("_", " "))


_COLOURS = {"train": "#4c72b0", "validation": "#dd8452", "test": "#55a868"}
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
    floor = [0 for _ in widths]  # where the next split's bars stand: on those of the splits before
    for split, colour in _COLOURS.items():
        counts = tokens["histogram"][split]
        axes.bar(edges[:-1], counts, widths, floor, align="edge", color=colour, label=split)
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
