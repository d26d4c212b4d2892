"""The proof that a GGUF is the model it was made from: same ids, same greedy text, same likelihood.

llama.cpp answers in a child process; what transformers says (`reference.truth`) is asked once for
all files of a model. Ids are compared the way Ollama makes them: the rendered text without BOS,
which the file's own settings must add.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf as gguf_format

from slimtune.console import InputError, QualityError
from slimtune.export.proof.reference import ModelAnswer, ProofRow, Truth
from slimtune.export.quant_types import EXACT, REFERENCE_IN_BF16, TIE, TOLERANCES
from slimtune.inference.llama_cpp import LlamaAnswer, LlamaCpp

_log = logging.getLogger(__name__)

_SLOTS = 8  # prompts at once: more cost memory for their caches and gain little
_EOS_KEY = "tokenizer.ggml.eos_token_id"


@dataclass(frozen=True)
class Proof:
    """What was compared. Greedy and likelihood fields are None where no row was asked for.

    `agreement`: share of the reference's greedy tokens before the first difference; `nll_*`: nats
    per answer token; `stopped`: answers of the GGUF that ended with the end token, `stopping`: the
    model's own that did.
    """

    prompts: int
    rows: int
    agreement: float | None = None
    nll_reference: float | None = None
    nll_gguf: float | None = None
    stopped: int | None = None
    stopping: int | None = None


def verify(
    gguf: Path,
    truth: Truth,
    quantization: str,
    *,
    threads: int | None = None,
    patience: float = 600.0,
) -> Proof:
    """Compares the ids of all rows, the end token, then text and likelihood where there is truth.

    Raises QualityError for the first difference found, also when llama.cpp refuses the file or
    crashes on it; ResourceError where xllamacpp is missing, memory does not suffice, or llama.cpp
    says nothing for `patience` seconds; InputError without rows.
    """
    if not truth.rows:
        raise InputError(f"{gguf}: nothing to prove it with", "no row was given", "give some rows")
    try:
        answers, losses = _ask(gguf, truth, threads, patience)
    except InputError as error:
        why = f"{error.what}: {error.why}"
        raise QualityError(f"{gguf}: the proof failed", why, error.cure) from error
    if not truth.said:
        return Proof(len(truth.rows), 0)
    if _exact(truth, quantization):
        for row, said, answer in zip(truth.rows, truth.said, answers, strict=False):
            _require_same_text(gguf, truth, row, said, answer)
    expected, measured = _mean([said.losses for said in truth.said]), _mean(losses)
    _require_likelihood(gguf, truth, quantization, expected, measured)
    _require_stops(gguf, truth.said, answers)
    return Proof(
        prompts=len(truth.rows),
        rows=len(truth.said),
        agreement=_agreement(truth.said, answers),
        nll_reference=expected,
        nll_gguf=measured,
        stopped=sum(answer.stopped_at_eos for answer in answers),
        stopping=sum(said.stopped for said in truth.said),
    )


def _ask(
    gguf: Path, truth: Truth, threads: int | None, patience: float
) -> tuple[list[LlamaAnswer], list[list[float]]]:
    """llama.cpp's greedy answers, and its losses on the same ids as the reference's."""
    pairs = [(r.prompt, said.scored) for r, said in zip(truth.rows, truth.said, strict=False)]
    longest = max((len(p) + max(truth.max_new_tokens, len(a)) for p, a in pairs), default=1)
    slots = max(1, min(len(pairs), _SLOTS))
    options = {"context": longest + 1, "slots": slots, "threads": threads, "patience": patience}
    with LlamaCpp(gguf, **options) as model:
        _require_same_ids(gguf, model, truth)
        _require_same_end(gguf, truth)
        answers = model.generate([prompt for prompt, _ in pairs], truth.max_new_tokens)
        return answers, [model.nll(prompt, answer) for prompt, answer in pairs]


def _require_same_ids(gguf: Path, model: LlamaCpp, truth: Truth) -> None:
    for number, row in enumerate(truth.rows, 1):
        found = model.tokenize(row.text)
        if found == row.prompt:
            continue
        place = _common(found, row.prompt)
        ours, theirs = (
            truth.tokenizer.convert_ids_to_tokens(i[place : place + 4]) for i in (row.prompt, found)
        )
        raise QualityError(
            f"{gguf}: prompt {number} becomes other tokens than in training",
            f"from token {place + 1} on, training has {ours}, llama.cpp {theirs}",
            "take tokenizer.model and tokenizer.json from the same model, then convert again",
        )


def _require_same_end(gguf: Path, truth: Truth) -> None:
    """The file's end token is the one training put after answers: else no answer ever ends."""
    field = gguf_format.GGUFReader(gguf).get_field(_EOS_KEY)
    found, trained = field.contents() if field else None, truth.tokenizer.eos_token_id
    if found != trained:
        raise QualityError(
            f"{gguf}: its end token is {found}, training's is {trained}",
            f"answers end with {truth.tokenizer.eos_token!r}; this file would run past it",
            "take config.json and the tokenizer's files from the same model, then convert again",
        )


def _require_same_text(
    gguf: Path, truth: Truth, row: ProofRow, expected: ModelAnswer, answer: LlamaAnswer
) -> None:
    place = _common(answer.ids, expected.ids)
    same = answer.ids == expected.ids and answer.stopped_at_eos == expected.stopped
    if same or expected.margins[min(place, len(expected.margins) - 1)] < TIE:
        return
    raise QualityError(
        f"{gguf}: it answers {row.text[-60:]!r} differently than the model",
        f"expected {truth.tokenizer.decode(expected.ids)[:80]!r}, got {answer.text[:80]!r}",
        "report this with the model's config.json: an exact type must not differ",
    )


def _require_likelihood(
    gguf: Path, truth: Truth, quantization: str, expected: float, measured: float
) -> None:
    _log.info("%s: NLL %.4f, the model's own %.4f nats a token", gguf.name, measured, expected)
    rise = measured - expected
    tolerance = TOLERANCES[quantization]
    if truth.precision == "bfloat16":
        tolerance += REFERENCE_IN_BF16
    allowed = tolerance * max(1.0, expected)
    if (abs(rise) if _exact(truth, quantization) else rise) <= allowed:
        return
    raise QualityError(
        f"{gguf}: the likelihood of answers differs by {rise:+.3f} nats per token",
        f"{measured:.3f}, the model's own is {expected:.3f}; {quantization} may cost {allowed:.3f}",
        "choose a larger type, such as --quantization Q8_0 or F16",
    )


def _require_stops(
    gguf: Path, expected: Sequence[ModelAnswer], answers: Sequence[LlamaAnswer]
) -> None:
    """At least half of the answers that the model itself ends must end: a coarse type may digress,
    a file that never ends is broken. Exact types have shown the very text before.
    """
    ending = [answer for said, answer in zip(expected, answers, strict=True) if said.stopped]
    stopped = sum(answer.stopped_at_eos for answer in ending)
    if 2 * stopped >= len(ending):
        return
    raise QualityError(
        f"{gguf}: {len(ending) - stopped} of {len(ending)} answers do not end",
        "the model itself ends them with its end token",
        "choose a larger type, such as --quantization Q8_0 or F16",
    )


def _exact(truth: Truth, quantization: str) -> bool:
    return quantization in EXACT and truth.precision == "float32"


def _agreement(expected: Sequence[ModelAnswer], answers: Sequence[LlamaAnswer]) -> float:
    pairs = list(zip(expected, answers, strict=True))
    total = sum(len(said.ids) + said.stopped for said, _ in pairs)
    same = sum(
        _common(said.ids, answer.ids)
        + (said.stopped and answer.stopped_at_eos and said.ids == answer.ids)
        for said, answer in pairs
    )
    return same / total


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _mean(losses: Sequence[Sequence[float]]) -> float:
    flat = [loss for row in losses for loss in row]
    return sum(flat) / len(flat)
