"""Same rows, same prompt, same truncation for every model of a comparison, or a refusal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from slimtune.console import InputError, SettingsError
from slimtune.evaluation.answers import Asked, Candidate, Question
from slimtune.prompts import render

TEMPLATE_FILE = "chat_template.jinja"
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def own_template(candidate: Candidate) -> str | None:
    """The chat template that lies with a candidate, its adapter first; None without one."""
    for folder in (candidate.adapter, candidate.tokenizer, candidate.reference):
        file = Path(folder or "") / TEMPLATE_FILE
        if folder and file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def common_template(
    candidates: Sequence[Candidate], otherwise: str, questions: Sequence[Question]
) -> str:
    """The one template that all candidates are asked with: their own, or `otherwise`.

    The bare base of a compared adapter has no say: it is asked as the adapter was trained, whatever
    its own chat template is. Raises SettingsError for two candidates whose templates show a row
    differently.
    """
    bases = {one.reference for one in candidates if one.adapter}
    found: list[tuple[Candidate, str]] = []
    for one in candidates:
        own = own_template(one)
        if own is not None and (one.adapter or one.reference not in bases):
            found.append((one, own))
    for one, own in found[1:]:
        _require_equal(found[0], (one, own), questions)
    return found[0][1] if found else otherwise


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
