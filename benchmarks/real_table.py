"""The tables of real_model.py, from the comparison's own figures, as Markdown for the documents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = "models/evaluation/evaluation_results_metrics.json"
TABLES = "tables.md"
TUNED = "fine-tuned"  # what all others are made from
# The stage whose time stands beside a model; a file is a stage of its own name.
MADE_BY = {
    "base": "prepare",
    TUNED: "fine-tune",
    "merged": "merge",
    "pruned": "prune",
    "distilled": "distil",
}
_NOTHING = "–"

Model = Mapping[str, Any]
Costs = Mapping[str, Mapping[str, float]]


def show(folder: Path, names: Mapping[str, str], sizes: Sequence[str], costs: Costs) -> None:
    """Print both tables and the bars, and leave them in `folder`/tables.md.

    `names` are what files of the merged, the distilled and the trimmed model are called before a
    `-` and a type or one of `sizes`: the larger and the smaller, and that of the trimmed model.
    """
    found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    models = {one["label"]: one for one in found["models"]}
    rows = found["settings"]["rows"]
    parts = [
        f"Every model on the same {rows:,} test rows, 95 % intervals. KL: nats a token from the\n"
        "fine-tuned model; read and write: tokens a second; minutes: wall time (CPU).",
        every_model(models, costs),
        "When does pruning pay? At equal bytes, the types of each file those that lose least:",
        when_pruning_pays(models, names, sizes),
        "Bars:",
        bars(models, names, sizes),
    ]
    text = "\n\n".join(parts) + "\n"
    (folder / TABLES).write_text(text, encoding="utf-8")
    print(f"\n{text}")


def every_model(models: Mapping[str, Model], costs: Costs) -> str:
    """One row a model: quality with its interval, size, speed, memory, what its stage took."""
    head = ("model", "match %", "KL", "parameters", "MB", "read", "write", "memory MB", "minutes")
    rows = [
        (
            label,
            *_quality(one),
            f"{one['cost']['parameters']:,}",
            *_costs(one),
            _minutes(label, costs),
        )
        for label, one in models.items()
    ]
    return markdown(head, rows)


def when_pruning_pays(
    models: Mapping[str, Model], names: Mapping[str, str], sizes: Sequence[str]
) -> str:
    """At each size the whole model at fewer bits beside the pruned and distilled one at more."""
    head = ("", "at", "match %", "KL", "bits a weight", "MB", "read", "write", "memory MB")
    whole, cut = names["merged"], names["distilled"]
    larger, smaller, _ = sizes
    chosen = (
        ("(a) all weights, fewer bits", larger, whole),
        ("(b) pruned and distilled, more bits", larger, cut),
        ("(a) all weights, fewer bits", smaller, whole),
        ("(c) both: pruned, distilled and fewer bits", smaller, cut),
    )
    rows = []
    for words, size, name in chosen:
        one = models[f"{name}-{size}"]
        bits = 8 * one["cost"]["bytes_on_disk"] / one["cost"]["parameters"]
        rows.append((words, size, *_quality(one), f"{bits:.2f}", *_costs(one)))
    return markdown(head, rows)


def bars(models: Mapping[str, Model], names: Mapping[str, str], sizes: Sequence[str]) -> str:
    """What was asked for, beside what came out."""
    match = {label: one["exact_match"]["score"] for label, one in models.items()}
    tuned, whole = match[TUNED], names["merged"]
    cut = 1 - _parameters(models["distilled"]) / _parameters(models["merged"])
    share = match["distilled"] / tuned if tuned else 0.0
    rows = [("pruned by", "20 % or more", f"{cut:.1%}", cut >= 0.2)]
    rows += [("distilled, of fine-tuned", "97 % or more", f"{share:.1%}", share >= 0.97)]
    least = models[f"{names['trimmed']}-{sizes[-1]}"]
    share = match[least["label"]] / tuned if tuned else 0.0
    rows += [(f"{least['label']}, of fine-tuned", "97 % or more", f"{share:.1%}", share >= 0.97)]
    weight = least["cost"]["bytes_on_disk"] / models["base"]["cost"]["bytes_on_disk"]
    rows += [("its bytes, of the base", "20 % or less", f"{weight:.1%}", weight <= 0.2)]
    allowed = {f"{whole}-Q8_0": 0.5, f"{whole}-Q4_K_M": 2.0, f"{whole}-{sizes[0]}": 1.0}
    for label, points in allowed.items():
        lost = tuned - match[label]
        rows.append((f"{label}, points lost", f"{points:g} or less", f"{lost:.1f}", lost <= points))
    answers = {True: "yes", False: "no"}
    return markdown(("", "bar", "found", "met"), [(*row[:3], answers[row[3]]) for row in rows])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what is not the first column stands to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _quality(model: Model) -> tuple[str, str]:
    match, apart = model["exact_match"], model["kl_divergence"]
    interval = f"{match['score']:.1f} ({match['low']:.1f}–{match['high']:.1f})"
    # The fine-tuned model's own is told from the base, which it should answer unlike.
    known = apart is not None and model["original"] == TUNED
    return interval, f"{apart['score']:.3f}" if known else _NOTHING


def _costs(model: Model) -> tuple[str, ...]:
    cost = model["cost"]
    speeds = [cost[f"{kind}_tokens_per_second"] for kind in ("prompt", "generated")]
    written = [_NOTHING if one is None else f"{one:,.0f}" for one in speeds]
    return (_mega(cost["bytes_on_disk"]), *written, _mega(cost["peak_memory_bytes"]))


def _mega(count: float | None) -> str:
    return _NOTHING if count is None else f"{count / 1e6:,.1f}"


def _minutes(label: str, costs: Costs) -> str:
    spent = costs.get(MADE_BY.get(label, label))
    return f"{spent['wall'] / 60:.1f} ({spent['cpu'] / 60:.1f})" if spent else _NOTHING


def _parameters(model: Model) -> int:
    return model["cost"]["parameters"]
