"""Whether an adapter sits on the model it was trained on: same shapes do not make the same base."""

from pathlib import Path

from slimtune.artifacts import run_of, sha256
from slimtune.console import InputError
from slimtune.evaluation.answers import Candidate
from slimtune.models.adapters import Adapter
from slimtune.models.folders import weight_files


def stranger(candidate: Candidate) -> str | None:
    """The base that the candidate's adapter was trained on, if it is not the one it got; else None.

    Names decide first, weights where names differ: a folder may have moved.
    """
    if candidate.adapter is None:
        return None
    trained_on, given = Adapter(candidate.adapter).base, candidate.reference
    if _place(trained_on) == _place(given):
        return trained_on if _made_anew(candidate) else None
    known = Path(trained_on).is_dir() and Path(given).is_dir()
    same = _equal(Path(trained_on), Path(given)) if known else _name(trained_on) == _name(given)
    return None if same else trained_on


def _made_anew(candidate: Candidate) -> bool:
    """Whether the base was written again after the adapter was trained on it."""
    adapter, base = run_of(Path(candidate.adapter or "")), run_of(Path(candidate.reference))
    inputs = adapter["inputs"] if adapter else []
    then = [one["run_id"] for one in inputs if _place(one["path"]) == _place(candidate.reference)]
    return bool(base) and any(run_id not in (None, base["run_id"]) for run_id in then)


def _equal(one: Path, other: Path) -> bool:
    try:
        files = [weight_files(folder) for folder in (one, other)]
    except InputError:  # no weights there any more
        return one.name == other.name
    sizes = [[file.stat().st_size for file in some] for some in files]
    return sizes[0] == sizes[1] and all(sha256(a) == sha256(b) for a, b in zip(*files, strict=True))


def _place(reference: str) -> str:
    return str(Path(reference).resolve()) if Path(reference).exists() else reference


def _name(reference: str) -> str:
    return Path(reference).name.lower()
