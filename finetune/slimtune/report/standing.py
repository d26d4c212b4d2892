"""Where the models of a comparison stand: the best, the best for their size, the steps between.

Plain data of metrics.json in, plain data out; tables and pictures show it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slimtune.report.measure_table import value_of

Model = Mapping[str, Any]
Run = Mapping[str, Any]


def leading(models: Sequence[Model]) -> str:
    """The measure that decides: exact match, or ROUGE-L where nobody is ever exactly right.

    Long answers in free words never equal their reference; 0.0 against 0.0 % would tell nothing.
    """
    return "exact_match" if any(one["exact_match"]["score"] for one in models) else "rouge_l"


def best(models: Sequence[Model]) -> Model:
    """The best model after the first; of equal ones the earliest."""
    name = leading(models)
    first, *others = models
    return max(others, key=lambda m: (m[name]["score"], m["rouge_l"]["score"]), default=first)


def sized(models: Sequence[Model]) -> list[Model]:
    """Those whose size is known; a server tells none."""
    return [one for one in models if value_of(one, "bytes_on_disk")]


def smallest(models: Sequence[Model]) -> Model | None:
    """The smallest model, the better one of two; None where no size is known."""
    return next(iter(front(models)), None)


def front(models: Sequence[Model]) -> list[Model]:
    """The best for their size, the smallest first: whatever is no larger is not as good."""
    name = leading(models)
    found: list[Model] = []
    for one in sorted(sized(models), key=lambda m: (value_of(m, "bytes_on_disk"), -score(m, name))):
        if not found or score(one, name) > score(found[-1], name):
            found.append(one)
    return found


def score(model: Model, name: str) -> float:
    """A measure of quality that every model has."""
    return float(model[name]["score"])


@dataclass(frozen=True)
class Step:
    """One model beside the one it was made from, or beside the first where that is not known.

    `run` is the record of what made it, if any.
    """

    model: Model
    source: Model
    made: bool
    verdict: str | None
    run: Run | None

    @property
    def learned(self) -> bool:
        """Whether it was trained: then it is meant to answer otherwise than before."""
        return self.run is not None and self.run["stage"] == "train_lora"

    def points(self, name: str) -> float:
        """What the step brought in the measure, negative where it cost."""
        return score(self.model, name) - score(self.source, name)

    def ratio(self, name: str) -> float | None:
        """A cost of the model over that of its source; None where either is unknown."""
        mine, theirs = (value_of(one, name) for one in (self.model, self.source))
        return mine / theirs if mine and theirs else None


def steps(models: Sequence[Model], runs: Mapping[str, Run]) -> list[Step]:
    """A step to each model but the first, in their order; `runs` maps labels to records."""
    name = leading(models)
    first, *others = models
    known = {one["label"]: one for one in models}
    found = []
    for model in others:
        made_from = known.get(model["made_from"])
        verdict = model[name]["verdict_made_from" if made_from else "verdict"]
        run = runs.get(model["label"])
        found.append(Step(model, made_from or first, made_from is not None, verdict, run))
    return found
