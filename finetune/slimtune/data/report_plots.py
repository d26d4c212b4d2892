"""The report's picture: how long the conversations are, and which languages they speak.

Its words are Latin only: matplotlib's own font has no Chinese glyphs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimtune.data.account import SPLITS

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
