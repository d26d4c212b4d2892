"""What makes a comparison fair, checked before figures are believed.

Every model gets the same rows, prompt and truncation, or the comparison is refused. Two things are
told as cautions: an adapter on another base than it was trained on (same shapes do not make the
same base), and test questions that were in the training data (counted again, whoever split them).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from slimtune.artifacts import run_of, sha256
from slimtune.data.learned_rows import Learned
from slimtune.data.similarity import keys_of
from slimtune.errors import InputError, SettingsError
from slimtune.inference.questions import Asked, Candidate, Question
from slimtune.models.adapters import Adapter
from slimtune.models.folders import weight_files
from slimtune.models.gguf_header import read_gguf
from slimtune.models.origin import recorded
from slimtune.prompts import render

TEMPLATE_NAME = "chat_template.jinja"
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def template_of(candidate: Candidate) -> str | None:
    """The chat template that lies with a candidate, its adapter first; None without one.

    The file of an adapter carries its own, the file under it the one of its first adapter. A server
    has one of its own, which it does not show.
    """
    if candidate.kind == "server":
        return None
    if candidate.foreign or (candidate.kind == "gguf" and candidate.adapter):
        files = [Path(file) for file in (candidate.adapter, candidate.reference) if file]
        return next(filter(None, (read_gguf(file).template for file in files)), None)
    for folder in (candidate.adapter, candidate.tokenizer, candidate.reference):
        file = Path(folder or "") / TEMPLATE_NAME
        if folder and file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def common_template(
    candidates: Sequence[Candidate], otherwise: str, questions: Sequence[Question]
) -> str:
    """The one template that all candidates are asked with: their own, or `otherwise`.

    The bare base of a compared adapter has no say: it is asked as the adapter was trained, whatever
    its own chat template is. Nor has a GGUF that others made (see `asked_with`). Raises
    SettingsError for two candidates whose templates show a row differently.
    """
    adapted = [one for one in candidates if one.adapter]
    bases = {base for one in adapted for base in (one.reference, one.tokenizer) if base}
    found: list[tuple[Candidate, str]] = []
    for one in candidates:
        own = None if one.foreign else template_of(one)
        bare = not one.adapter and bool({one.reference, one.tokenizer} & bases)
        if own is not None and not bare:
            found.append((one, own))
    for one, own in found[1:]:
        _require_equal(found[0], (one, own), questions)
    return found[0][1] if found else otherwise


def asked_with(candidate: Candidate, common: str) -> str:
    """The template that a candidate is asked with: a GGUF that others made with its own.

    It serves with that one and with no other; the models of a run of ours share one.
    """
    return (template_of(candidate) or common) if candidate.foreign else common


def asked_differently(candidate: Candidate, common: str, questions: Sequence[Question]) -> bool:
    """Whether any row is shown to it otherwise than to the models of `common`."""
    own = asked_with(candidate, common)
    if own == common:
        return False
    return list(_shown(own, questions)) != list(_shown(common, questions))


def require_same_cut(label: str, asked: Asked, first: Asked) -> None:
    """Raises InputError where another tokenizer makes prompts too long: they would lose other text.

    One tokenizer cuts all models' prompts at the same place.
    """
    cut = {*asked.shortened, *first.shortened}
    if asked.digest != first.digest and cut:
        raise InputError(
            f"{label}: {len(cut)} prompts would be cut elsewhere than the first model's",
            "it has another tokenizer, and these prompts are too long for one of the two",
            "raise --max-length, lower --max-new-tokens, or leave out the long rows",
        )


def _require_equal(
    first: tuple[Candidate, str], other: tuple[Candidate, str], questions: Sequence[Question]
) -> None:
    if first[1] == other[1]:
        return
    pairs = zip(_shown(first[1], questions), _shown(other[1], questions), strict=True)
    different = next((number for number, (a, b) in enumerate(pairs) if a != b), None)
    if different is not None:
        raise SettingsError(
            f"{other[0].label}: has another prompt template than {first[0].label}",
            f"its chat_template.jinja shows row {questions[different].id} differently, "
            "so their answers do not compare",
            "train both with one --prompt-template, or evaluate each in a run of its own",
        )


def _shown(template: str, questions: Sequence[Question]) -> Iterator[str]:
    """The rows as a template shows them; a BOS that it leaves to the tokenizer does not count."""
    for asked in questions:
        messages = [dict(message) for message in asked.conversation]
        yield render(messages, template, **_TOKENS).removeprefix(_TOKENS["bos_token"])


def foreign_base(candidate: Candidate) -> str | None:
    """The base that the candidate's adapter was trained on, if it is not the one it got; else None.

    A fingerprint that the adapter kept has been compared when it was opened. Else names decide
    first, weights where names differ: a folder may have moved. Of an adapter's file all that is
    known was said when it was opened.
    """
    if candidate.kind != "adapter" or recorded(Path(candidate.adapter)):
        return None
    trained_on, given = Adapter(candidate.adapter).base, candidate.reference
    if _place(trained_on) == _place(given):
        return trained_on if _written_again(candidate) else None
    known = Path(trained_on).is_dir() and Path(given).is_dir()
    same = _equal(Path(trained_on), Path(given)) if known else _name(trained_on) == _name(given)
    return None if same else trained_on


def _written_again(candidate: Candidate) -> bool:
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


def count_leaked(questions: Sequence[Question], learned: Learned) -> dict[str, int | None]:
    """`training_rows`, and `leaked_rows`: test rows that ask what a training row asks.

    Case, width, spacing and punctuation are forgiven. Both are None where it is not known: no file
    of training rows is named, or none asks it and some cannot be read any more.
    """
    try:
        rows = learned.rows()
    except InputError:  # a stranger's record may name anything
        rows = []
    keys = {keys_of(row["messages"]).question for row in rows}
    leaked = sum(keys_of(asked.messages).question in keys for asked in questions)
    if not rows or (learned.gone and not leaked):
        return {"training_rows": None, "leaked_rows": None}
    return {"training_rows": len(rows), "leaked_rows": leaked}
