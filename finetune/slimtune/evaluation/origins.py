"""What each compared model was made from, and which one it should still answer like.

A model was *made from* the nearest one in its lineage that is compared too: a pruned model from the
one that was cut, a distilled one from its student, a GGUF and a merged model from what they were
written from, an adapter from its base. What a server runs has no origin that anyone could know.

Its *original* is where the steps that should change no answer began: merging, pruning, distilling
and converting are followed back, learning ends the way. A model that has learned, or of which
nothing is known, has the first model's original, or the first model itself. The KL divergence and
the agreement of first choices are measured against it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimtune.artifacts import run_of
from slimtune.inference.questions import Candidate

_LEARNING = "train_lora"  # adapters and whole models
_ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Origin:
    """Labels of compared models; None where there is none."""

    made_from: str | None = None
    original: str | None = None


def origins_of(candidates: Sequence[Candidate]) -> dict[str, Origin]:
    """Label -> origin of each candidate, as the records of the stages tell."""
    here = [one for one in candidates if one.kind != "server"]
    places = {_identity(one): one.label for one in here}
    ways = {one.label: list(_way(one, places)) for one in here}
    starts = {label: _start(label, ways) for label in ways}
    first = starts.get(candidates[0].label)
    found = {one.label: Origin() for one in candidates}
    for label, way in ways.items():
        made_from = way[0][0] if way else None
        original = starts[label] if starts[label] != label else first
        # Only a forged record makes a start of its own start's descendant.
        known = original not in (label, None) and starts[original] == original
        found[label] = Origin(made_from, original if known else None)
    return found


def originals_first(
    candidates: Sequence[Candidate], origins: Mapping[str, Origin]
) -> list[Candidate]:
    """The candidates in their order, but each after its original."""
    named = {one.label: one for one in candidates}
    ordered: dict[str, Candidate] = {}

    def place(label: str) -> None:
        original = origins[label].original
        if original and original not in ordered:
            place(original)
        ordered.setdefault(label, named[label])

    for one in candidates:
        place(one.label)
    return list(ordered.values())


_Identity = tuple[str, str | None]
_Step = tuple[str, bool]  # a compared model's label, and whether learning lies on the way to it


def _start(label: str, ways: Mapping[str, list[_Step]]) -> str:
    """The farthest compared model of a way on which nothing was learned."""
    for ancestor, learned in ways[label]:
        if learned:
            break
        label = ancestor
    return label


def _way(candidate: Candidate, places: Mapping[_Identity, str]) -> Iterator[_Step]:
    """The compared models that a candidate goes back to, the nearest first."""
    here, learned, seen = _identity(candidate), False, set()
    while here is not None and here not in seen:
        if here in places and seen:
            yield places[here], learned
        seen.add(here)
        reference, adapter = here
        if adapter is not None:
            # The file of an adapter was made from a folder's; that sits on its base, and what it
            # learned lies between.
            written = _source(run_of(Path(adapter))) if os.path.isfile(adapter) else None
            here, learned = written or (reference, None), learned or written is None
        else:
            run = run_of(Path(reference)) if os.path.exists(reference) else None
            learned = learned or (run is not None and run["stage"] == _LEARNING)
            here = _source(run)


def _source(run: Mapping[str, Any] | None) -> _Identity | None:
    """What a stage made its model from: its first input, with the adapter among its inputs on top.

    None where that has been written again since: it is another model now.
    """
    inputs = run["inputs"] if run else []
    adapters = [one for one in inputs if os.path.isfile(Path(one["path"], _ADAPTER_FILE))][:1]
    models = [one for one in inputs if one not in adapters][:1]
    if not models or any(map(_written_again, models + adapters)):
        return None
    return _place(models[0]["path"]), _place(adapters[0]["path"]) if adapters else None


def _written_again(one: Mapping[str, Any]) -> bool:
    path = Path(one["path"])
    if one.get("run_id") is None or not path.exists():
        return False
    now = run_of(path)
    return now is not None and now["run_id"] != one["run_id"]


def _identity(candidate: Candidate) -> _Identity:
    adapter = candidate.adapter
    return _place(candidate.reference), None if adapter is None else _place(adapter)


def _place(reference: str) -> str:
    return str(Path(reference).resolve()) if os.path.exists(reference) else reference
