"""The test result on a model's card: one section between two marks, which a comparison replaces.

    put_results(metrics)      # after a comparison: on the card of each folder that it compared

A card is for people, no stage goes by it: it may change when the folder is finished. Whoever edits
one keeps every word outside the marks.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import write_page
from slimtune.artifacts.reading import CARD
from slimtune.artifacts.records import run_of
from slimtune.console import decoration, near
from slimtune.report.markdown import CONTROL
from slimtune.report.measure_table import MEASURES
from slimtune.report.standing import Model, leading, score
from slimtune.report.tables import comparison
from slimtune.report.words import LANGUAGES

# Where the result stands. HTML comments: a reader of the page sees neither.
_OPEN = "<!-- test result: evaluate_model.py writes what stands from here -->"
_CLOSE = "<!-- to here: the test result -->"
_PLACE = re.compile(f"\\n{re.escape(_OPEN)}.*?{re.escape(_CLOSE)}\\n?", re.DOTALL)
_LARGEST = 1 << 20  # bytes: a card that we write has a few thousand
_BAR = 40  # characters of the longest bar

_SECTION = """\
## Test

{said}

```text
{bars}
```

{figures}
"""


def put_results(metrics: Mapping[str, Any]) -> list[Path]:
    """The cards that now tell their model's part of `metrics`, the content of metrics.json: those
    of folders that stages of ours wrote with a card."""
    told = []
    for model in metrics["models"]:
        folder = Path(model["adapter"] or model["reference"])
        run = run_of(folder) if folder.is_dir() else None
        if run is None or CARD not in run["files"] or not (folder / CARD).is_file():
            continue
        with decoration(f"the test result on {near(folder / CARD)}"):
            _put_section(folder / CARD, section_of(metrics, model))
            told.append(folder / CARD)
    return told


def place_of(section: str) -> str:
    """Where the result stands on a card, with `section` in it, which is "" before a test."""
    return f"\n{_OPEN}\n{section}{_CLOSE}\n"


def _put_section(card: Path, section: str) -> None:
    """The section in its place on a card; at the end where its owner took the place away.

    Raises ValueError for a card larger than any that a person wrote.
    """
    if card.stat().st_size > _LARGEST:
        raise ValueError("it has more than a megabyte")
    text = card.read_text(encoding="utf-8")
    place = place_of(section)
    whole, found = _PLACE.subn(lambda _: place, text, count=1)
    write_page(card, whole if found else f"{text.rstrip()}\n{place}")


def section_of(
    metrics: Mapping[str, Any], model: Model, said: str = "Measured by `evaluate_model.py`."
) -> str:
    """In Markdown: the model beside the one it was made from and the first of the comparison."""
    first = metrics["models"][0]["label"]
    beside = {first, model["made_from"], model["label"]}
    shown = [one for one in metrics["models"] if one["label"] in beside]
    figures = comparison({**metrics, "models": shown}, LANGUAGES["en"])
    return _SECTION.format(said=said, bars=_bars(shown), figures="\n\n".join(figures).strip())


def _bars(models: Sequence[Model]) -> str:
    """The measure that decides, drawn: a line a model, its score and a bar as long."""
    name = leading(models)
    measure = MEASURES[name]
    labels = [_in_a_line(one["label"]) for one in models]
    width = max(map(len, labels))
    lines = [measure.title("en")]
    for label, one in zip(labels, models, strict=True):
        bar = "█" * round(_BAR * score(one, name) / 100)
        lines.append(f"{label:<{width}}  {measure.written(score(one, name)):>5}  {bar}".rstrip())
    return "\n".join(lines)


def _in_a_line(label: str) -> str:
    """A name that cannot end the block it stands in."""
    return CONTROL.sub("\ufffd", " ".join(label.split())).replace("`", "'")
