"""Answers kept as they come, so that a comparison that was killed goes on where it was.

One file of JSON lines for each model and set of settings, named after a digest of both; each line
belongs to one row, named after a digest of what was asked.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from slimtune.inference.answers import AnswerLoss, Cost, Generation, Outcome, in_order
from slimtune.inference.distributions import Distributions, kept_rows
from slimtune.inference.questions import Asked, Candidate, Job, Question
from slimtune.models.adapters import ADAPTER_WEIGHTS
from slimtune.models.folders import local_folder, weight_files

Kept = TypeVar("Kept", Generation, AnswerLoss)
RowNumbers = set[int]


class Predictions:
    """What is known already about one candidate, and the file that grows with every answer.

    What an original expects of each token lies in the folder `distributions` beside it. Losses that
    were compared with the `original` of this name are known only beside the same.
    """

    def __init__(
        self, file: Path | None, questions: Sequence[Question], original: str = ""
    ) -> None:
        self.file, self.original, self.questions = file, original, questions
        self.distributions = file and file.with_suffix(".distributions")
        if file and file.is_symlink():  # none of ours: through it, another file would grow
            file.unlink()
        self.rows = [f"{number}:{_digest(_asked(one))}" for number, one in enumerate(questions)]
        self.known = _read(file) if file else {}

    @classmethod
    def of(cls, candidate: Candidate, job: Job) -> Self:
        """Those of a candidate; in memory only where the job keeps none."""
        if job.kept_in is None:
            return cls(None, job.questions)
        told = [job.template, job.max_length, asdict(job.decoding), job.computed]
        name = _digest([asdict(candidate), _weights(candidate), *told])
        original = job.original.distributions.stem if job.original else ""
        return cls(job.kept_in / f"{name}.jsonl", job.questions, original)

    def complete(
        self, kind: type[Kept], find: Callable[[RowNumbers], Iterator[tuple[int, Kept]]]
    ) -> list[Kept]:
        """All results of a kind, in row order: `find` is given the known rows and finds the rest.

        A row found again replaces what was known: it belongs to a batch that was cut short.
        """
        names, results = self._names(kind), self._found(kind)
        for row, result in find(set(results)):
            results[row] = result
            self._keep(names[row], asdict(result))
        return in_order(results.items())

    def answered(self) -> list[tuple[Question, Generation]]:
        """The questions whose answers are known, with these."""
        return [(self.questions[row], one) for row, one in self._found(Generation).items()]

    def _found(self, kind: type[Kept]) -> dict[int, Kept]:
        """The results of a kind that are known, by row."""
        names = enumerate(self._names(kind))
        return {row: kind(**self.known[name]) for row, name in names if name in self.known}

    def _names(self, kind: type[Kept]) -> list[str]:
        beside = self.original if kind is AnswerLoss else ""
        return [f"{kind.__name__}:{beside}{key}" for key in self.rows]

    def finish(self, outcome: Outcome) -> None:
        """Notes that nothing is missing, and what it took."""
        told = {"asked": asdict(outcome.asked), "cost": asdict(outcome.cost)}
        folder = outcome.distributions
        told["distributions"] = kept_rows(folder) if folder else None
        self._keep(self._finished, told | {"guessing": outcome.guessing})

    def outcome(self, candidate: Candidate, is_original: bool = False) -> Outcome | None:
        """The whole outcome where an earlier run finished this candidate, else None.

        Of an original it is whole only with what it expects of each token.
        """
        found = self.known.get(self._finished)
        if found is None or (is_original and not self._are_kept(found["distributions"])):
            return None
        asked = Asked(**found["asked"] | {"shortened": tuple(found["asked"]["shortened"])})
        generations = self.complete(Generation, lambda _: iter(()))
        losses = self.complete(AnswerLoss, lambda _: iter(()))
        cost, guessing = Cost(**found["cost"]), found.get("guessing")
        folder = self.distributions if is_original else None
        return Outcome(candidate, generations, losses, asked, cost, guessing, folder)

    def _are_kept(self, rows: list[int] | None) -> bool:
        return rows is not None and not Distributions(frozenset(rows), self.distributions).missing()

    @property
    def _finished(self) -> str:
        return f"finished:{_digest([self.original, *self.rows])}"

    def _keep(self, name: str, value: dict[str, Any]) -> None:
        self.known[name] = value
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # The line end comes first: what a killed run left half-written stays a line of its own.
        with self.file.open("a", encoding="ascii") as handle:
            handle.write(f"\n{json.dumps({name: value})}")


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not file.is_file():
        return found
    for line in file.read_text(encoding="ascii").split("\n"):
        try:
            found |= json.loads(line)
        except (ValueError, TypeError):
            continue  # empty, or the line that a killed run was writing
    return found


def _asked(question: Question) -> list[Any]:
    """What an answer belongs to: the question, and the shape in which this version keeps answers.

    Those of a version that kept less are asked for again.
    """
    shape = [field.name for kind in (Generation, AnswerLoss) for field in fields(kind)]
    return [[dict(message) for message in question.messages], question.reference, shape]


def files_of(candidate: Candidate) -> list[Path]:
    """Every file of weights that a candidate is made of, its adapter's last."""
    adapter = Path(candidate.adapter) if candidate.adapter else None
    if candidate.kind == "gguf":
        return [Path(candidate.reference), *([adapter] if adapter else [])]
    files = weight_files(local_folder(candidate.reference))
    return [*files, *([adapter / ADAPTER_WEIGHTS] if adapter else [])]


def _weights(candidate: Candidate) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every weight file, as make looks at what it builds from.

    None of a server's, whose candidate has a fingerprint.
    """
    if candidate.kind == "server":
        return []
    files = files_of(candidate)
    states = [file.stat() for file in files]
    pairs = zip(files, states, strict=True)
    return [(file.name, state.st_size, state.st_mtime_ns) for file, state in pairs]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()[:16]
