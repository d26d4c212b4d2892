"""report.html: the same report as one self-contained page, with plots; it asks nothing of the net.

The blocks are those of the Markdown report, already inert; a content security policy forbids
scripts and every request on top of that.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from slimtune.console import size
from slimtune.evaluation import report
from slimtune.evaluation.plots import Bar, bars, curves
from slimtune.evaluation.report_words import LANGUAGES, Words

_STYLE = Path(__file__).with_name("page.css")
_CODES = {"en": "en", "zh": "zh-CN"}
_PLACE = re.compile(r"<p>(\$\{\w+\})</p>")
_SIGN = re.compile("[▲▼](?=</td>)")
_CLASSES = {"▲": "better", "▼": "worse"}


def render(
    lineage: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Any],
    *,
    language: str = "en",
    curve: Sequence[Mapping[str, float]] = (),
) -> str:
    """The whole page; the arguments are those of `report.blocks`."""
    words = LANGUAGES[language]
    convert = MarkdownIt("commonmark", {"html": True}).enable("table").render
    places = report.blocks(lineage, metrics, language=language, curve=curve)
    blocks = {place: convert(block) for place, block in places.items()}
    blocks["comparison"] = _quality(metrics, words) + _coloured(blocks["comparison"])
    blocks["cost"] = _costs(metrics, words) + blocks["cost"]
    blocks["training"] += _curve(curve, words)
    template = report.template(language)
    # The template is turned into HTML first: no text of a row is ever read as a place.
    template.template = _PLACE.sub(r"<section>\1</section>", convert(template.template))
    title = re.search(r"<h1>(.*?)</h1>", template.template)
    return _PAGE.format(
        language=_CODES[language],
        title=escape(title[1] if title else ""),
        style=_STYLE.read_text(encoding="utf-8"),
        body=template.substitute(blocks),
    )


_PAGE = """\
<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def _quality(metrics: Mapping[str, Any], words: Words) -> str:
    """The measures that decide, as bars with intervals."""
    return "".join(
        _judged_bars(metrics["models"], name, digits, words)
        for name, digits in (("exact_match", 1), ("rouge_l", 1), ("bits_per_byte", 3))
    )


def _judged_bars(models: Sequence[Mapping[str, Any]], name: str, digits: int, words: Words) -> str:
    rows = [
        Bar(model["label"], judged["score"], (judged["low"], judged["high"]),
            f"{judged['score']:.{digits}f}")
        for model in models if (judged := model[name])
    ]  # fmt: skip
    return bars(words.measures[name].title, rows) if rows else ""


def _costs(metrics: Mapping[str, Any], words: Words) -> str:
    written = {"bytes_on_disk": size, "generated_tokens_per_second": "{:,.0f}".format}
    return "".join(
        bars(
            words.measures[name].title,
            [
                Bar(model["label"], model["cost"][name], None, show(model["cost"][name]))
                for model in metrics["models"]
            ],
        )
        for name, show in written.items()
    )


def _curve(curve: Sequence[Mapping[str, float]], words: Words) -> str:
    _, *names = words.curve
    lines = {
        name: [(entry["step"], entry[key]) for entry in curve if key in entry]
        for name, key in zip(names, ("loss", "eval_loss"), strict=True)
    }
    drawn = {name: line for name, line in lines.items() if line}
    return curves(", ".join(drawn), drawn) if drawn else ""


def _coloured(block: str) -> str:
    return _SIGN.sub(lambda sign: f'<b class="{_CLASSES[sign[0]]}">{sign[0]}</b>', block)
