"""report.html: the report as one self-contained page with pictures; it asks nothing of the net.

The blocks are those of the Markdown report, already inert; a content security policy forbids
scripts and every request on top of that. Pictures are inline SVG, whose labels the browser writes:
matplotlib has no Chinese glyphs and would draw a row of boxes.
"""

import re
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from slimtune.report import bars, shown_rows, tables
from slimtune.report.loss_picture import loss_picture
from slimtune.report.markdown import anchor
from slimtune.report.measure_table import MEASURES, Group, names_of
from slimtune.report.size_picture import size_picture
from slimtune.report.training_report import Found, report_places, report_template
from slimtune.report.words import LANGUAGES, Words

_STYLE = Path(__file__).with_name("page.css")
_CODES = {"en": "en", "zh": "zh-CN"}
_PLACE = re.compile(r"<p>(\$\{\w+\})</p>")
_SECTION = re.compile(r"<h2>(.*?)</h2>")
_SIGN = re.compile("[▲▼](?=</td>)")
_CLASSES = {"▲": "better", "▼": "worse"}


def render_page(found: Found, language: str = "en") -> str:
    """The whole page."""
    words = LANGUAGES[language]
    convert = MarkdownIt("commonmark", {"html": True}).enable("table").render
    places = report_places(found, language)
    blocks = {place: _scrolling(convert(block)) for place, block in places.items()}
    blocks |= _drawn(found, blocks, words)
    template = report_template(language)
    # The template is turned into HTML first: no text of a row is ever read as a place.
    body = _PLACE.sub(r"\1", _scrolling(convert(template.template)))
    head, rest = body.split("${contents}")
    title = re.search(r"<h1>(.*?)</h1>", head)
    template.template = _PAGE.format(
        language=_CODES[language],
        title=escape(title[1] if title else ""),
        head=head,
        contents=words.contents,
        sections=_SECTION.sub(_opened, rest).strip().removeprefix("</section>"),
    )
    return template.substitute(blocks, style=_STYLE.read_text(encoding="utf-8"))


_PAGE = """\
<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
${{style}}</style>
</head>
<body>
<header>
{head}</header>
<nav aria-label="{contents}">
${{contents}}</nav>
<main>
{sections}</section>
</main>
</body>
</html>
"""


def _opened(heading: re.Match[str]) -> str:
    """A heading as the beginning of a section that the contents link to."""
    return f'</section>\n<section id="{anchor(heading[1])}">\n{heading[0]}'


def _drawn(found: Found, blocks: dict[str, str], words: Words) -> dict[str, str]:
    """The places that are pictures here, with the figures of the Markdown report folded beneath."""
    metrics, models = found.metrics, found.metrics["models"]
    losses = [loss_picture(label, lines, words) for label, lines in found.histories.items()]
    return {
        "verdict": _verdict(found, words),
        "sizes": size_picture(models, words) + _folded(words.as_table, _figures(blocks["sizes"])),
        "steps": bars.step_bars(models, found.steps, words) if found.steps else blocks["steps"],
        "samples": shown_rows.rows_html(metrics, words),
        "losses": "".join(losses) + _folded(words.as_table, blocks["losses"])
        if losses
        else blocks["losses"],
        "comparison": _figures(_coloured(blocks["comparison"])) + _charts(found, "quality", words),
        "cost": _figures(blocks["cost"]) + _charts(found, "cost", words),
    }


def _verdict(found: Found, words: Words) -> str:
    """Its three lines, each beside the figure that a glance must catch."""
    told = MarkdownIt("commonmark").renderInline
    lines = [
        f'<p class="{bars.KINDS.get(line.kind, "same")}"><strong>{escape(line.figure)}</strong> '
        f"<span>{told(line.sentence)}</span></p>"
        for line in tables.verdict_lines(found.metrics, words)
    ]
    return f'<div class="verdict">{"".join(lines)}</div>\n'


def _charts(found: Found, group: Group, words: Words) -> str:
    """The bars of a group: of each measure that the table wants drawn."""
    plotted = [name for name in names_of(group) if MEASURES[name].plot]
    drawn = (bars.measure_bars(found.metrics["models"], name, words) for name in plotted)
    return f'<div class="charts">{"".join(drawn)}</div>\n'


def _figures(block: str) -> str:
    """A block whose tables hold nothing but figures: none of them is broken."""
    return f'<div class="figures">\n{block}</div>\n'


def _folded(title: str, block: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{block}</details>\n"


def _scrolling(block: str) -> str:
    """Each table in a frame of its own: it scrolls, its first column and the page stay."""
    framed = block.replace("<table>", '<div class="table"><table>')
    return framed.replace("</table>", "</table></div>")


def _coloured(block: str) -> str:
    """The signs of better and worse at the end of a cell, in their colours."""

    def coloured(sign: re.Match[str]) -> str:
        return f'<b class="{_CLASSES[sign[0]]}">{sign[0]}</b>'

    return _SIGN.sub(coloured, block)
