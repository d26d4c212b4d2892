"""The proof that a GGUF is the model it was made from: same ids, same greedy text, same likelihood.

llama.cpp answers in a child process; what transformers says (`reference`) is asked once for all
files of a model. Ids are compared the way Ollama makes them: the rendered text without BOS, which
the file's own settings must add.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf as gguf_format

from slimtune.errors import InputError, QualityError
from slimtune.export.proof.reference import ProofRow, Reference, ReferenceAnswer
from slimtune.export.quant_types import EXACT, REFERENCE_IN_BF16, TIE, TOLERANCES
from slimtune.inference.answers import Generation, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp

_log = logging.getLogger(__name__)

_SLOTS = 8  # prompts at once: more cost memory for their caches and gain little
_LESS_LIKELY = 1.0  # nats that the end token may lose
_EOS_KEY = "tokenizer.ggml.eos_token_id"


@dataclass(frozen=True)
class GgufProof:
    """What was compared. Greedy and likelihood fields are None where no row was asked for.

    `texts`: hard ones whose ids were compared too; `agreement`: share of the reference's greedy
    tokens before the first difference; `nll_*`: nats per answer token; `stopped`: answers of the
    GGUF that ended with the end token, `stopping`: the model's own that did.
    """

    prompts: int
    texts: int
    rows: int
    agreement: float | None = None
    nll_reference: float | None = None
    nll_gguf: float | None = None
    stopped: int | None = None
    stopping: int | None = None


def verify(
    gguf: Path,
    reference: Reference,
    quantization: str,
    *,
    adapter: Path | None = None,
    tolerance: float | None = None,
    threads: int | None = None,
    patience: float = 600.0,
) -> GgufProof:
    """Compares the ids of all rows and the end token, then text and likelihood of those answered.

    `tolerance` is the rise of the loss that is allowed, None: that of the type `quantization`.
    `adapter` is the GGUF of one, which llama.cpp puts on the model; the reference has it too.
    Raises QualityError for the first difference found, also when llama.cpp refuses the file or
    crashes on it; ResourceError where xllamacpp is missing, memory does not suffice, or llama.cpp
    says nothing for `patience` seconds; InputError without rows.
    """
    if not reference.rows:
        raise InputError(f"{gguf}: nothing to prove it with", "no row was given", "give some rows")
    try:
        answers, losses = _ask(gguf, adapter, reference, threads, patience)
    except InputError as error:
        why = f"{error.what}: {error.why}"
        raise QualityError(f"{gguf}: the proof failed", why, error.cure) from error
    if not reference.answers:
        return GgufProof(len(reference.rows), len(reference.texts), 0)
    expected = [one.generation for one in reference.answers]
    if _exact(reference, quantization):
        for row, said, answer in zip(reference.rows, expected, answers, strict=False):
            _require_same_text(gguf, row, said, answer, reference)
    nll_reference = _mean([one.losses for one in reference.answers])
    nll_gguf = _mean(losses)
    if tolerance is None:
        tolerance = TOLERANCES[quantization]
    _require_likelihood(gguf, reference, quantization, tolerance, nll_reference, nll_gguf)
    _require_stops(gguf, reference.answers, answers, losses)
    return GgufProof(
        prompts=len(reference.rows),
        texts=len(reference.texts),
        rows=len(reference.answers),
        agreement=_agreement(expected, answers),
        nll_reference=nll_reference,
        nll_gguf=nll_gguf,
        stopped=sum(answer.stopped for answer in answers),
        stopping=sum(answer.stopped for answer in expected),
    )


@dataclass(frozen=True)
class Cost:
    """What a file costs against the reference: `nats` a token that its answers lose, and the share
    of the reference's greedy tokens that it says too (`agreement`).
    """

    nats: float
    agreement: float


def cost_of(gguf: Path, reference: Reference, patience: float = 600.0) -> Cost:
    """The cost of a file that need not pass; raises what `verify` does for other ids or ends."""
    answers, losses = _ask(gguf, None, reference, None, patience)
    lost = _mean(losses) - _mean([one.losses for one in reference.answers])
    return Cost(lost, _agreement([one.generation for one in reference.answers], answers))


def _ask(
    gguf: Path,
    adapter: Path | None,
    reference: Reference,
    threads: int | None,
    patience: float,
) -> tuple[list[Generation], list[TokenLosses]]:
    """llama.cpp's greedy answers, and its losses on the same ids as the reference's."""
    asked = zip(reference.rows, reference.answers, strict=False)
    pairs = [(row.prompt, answer.scored) for row, answer in asked]
    new = reference.max_new_tokens
    longest = max((len(prompt) + max(new, len(scored)) for prompt, scored in pairs), default=1)
    slots = max(1, min(len(pairs), _SLOTS))
    options = {"context": longest + 1, "slots": slots, "threads": threads, "patience": patience}
    with LlamaCpp(gguf, adapter=adapter, **options) as model:
        _require_same_ids(gguf, model, reference)
        _require_same_end(gguf, reference)
        answers = model.generate([prompt for prompt, _ in pairs], Decoding(new))
        losses: list[TokenLosses] = []
        for pair in pairs:  # each alone: its figures must not depend on its neighbours
            losses += [found for _, found in model.losses([pair])]
    return answers, losses


def _require_same_ids(gguf: Path, model: LlamaCpp, reference: Reference) -> None:
    rows = [(f"prompt {n}", row.text, row.prompt) for n, row in enumerate(reference.rows, 1)]
    hard = [(f"the text {text[:60]!r}", text, ids) for text, ids in reference.texts]
    for name, text, wanted in [*rows, *hard]:
        found = model.tokenize(text)
        if found == wanted:
            continue
        place = _common(found, wanted)
        ours, theirs = (
            reference.tokenizer.convert_ids_to_tokens(ids[place : place + 4])
            for ids in (wanted, found)
        )
        raise QualityError(
            f"{gguf}: {name} becomes other tokens than in training",
            f"from token {place + 1} on, training has {ours}, llama.cpp {theirs}",
            "take tokenizer.model and tokenizer.json from the same model, then convert again",
        )


def _require_same_end(gguf: Path, reference: Reference) -> None:
    """The file's end token is the one training put after answers: else no answer ever ends."""
    field = gguf_format.GGUFReader(gguf).get_field(_EOS_KEY)
    found, trained = field.contents() if field else None, reference.tokenizer.eos_token_id
    if found != trained:
        raise QualityError(
            f"{gguf}: its end token is {found}, training's is {trained}",
            f"answers end with {reference.tokenizer.eos_token!r}; this file would run past it",
            "take config.json and the tokenizer's files from the same model, then convert again",
        )


def _require_same_text(
    gguf: Path, row: ProofRow, expected: Generation, answer: Generation, reference: Reference
) -> None:
    """The greedy text to the token, less ties; llama.cpp also stops at end tokens of other kinds.

    The reference stops at EOS alone, so where it goes on after <|endoftext|> that is the end, too.
    """
    place = _common(answer.ids, expected.ids)
    same = answer.ids == expected.ids and answer.stopped == expected.stopped
    if same or expected.margins[min(place, len(expected.margins) - 1)] < TIE:
        return
    ended = answer.stopped and place == len(answer.ids) < len(expected.ids)
    if ended and expected.ids[place] in reference.tokenizer.added_tokens_decoder:
        return
    raise QualityError(
        f"{gguf}: it answers {row.text[-60:]!r} differently than the model",
        f"expected {expected.text[:80]!r}, got {answer.text[:80]!r}",
        "report this with the model's config.json: an exact type must not differ",
    )


def _require_likelihood(
    gguf: Path,
    reference: Reference,
    quantization: str,
    tolerance: float,
    expected: float,
    measured: float,
) -> None:
    _log.info("%s: NLL %.4f, the model's own %.4f nats a token", gguf.name, measured, expected)
    rise = measured - expected
    if reference.precision == "bfloat16":
        tolerance += REFERENCE_IN_BF16
    allowed = tolerance * max(1.0, expected)
    if (abs(rise) if _exact(reference, quantization) else rise) <= allowed:
        return
    raise QualityError(
        f"{gguf}: the likelihood of answers differs by {rise:+.3f} nats per token",
        f"{measured:.3f}, the model's own is {expected:.3f}; {quantization} may cost {allowed:.3f}",
        "choose a larger type, such as --quantization Q8_0 or F16",
    )


def _require_stops(
    gguf: Path,
    expected: Sequence[ReferenceAnswer],
    answers: Sequence[Generation],
    losses: Sequence[TokenLosses],
) -> None:
    """At least half of the answers that the model itself ends must end: a coarse type may digress,
    a file that never ends is broken. Exact types have shown the very text before.

    One that took another way ends if its end token is as likely as the model's own where the
    model's answer ends: of SmolLM2 in Q8_0 2 of 2 greedy answers merely went on longer.
    """
    compared = zip(expected, answers, losses, strict=True)
    ending = [
        answer.stopped or found.nats[-1] <= said.losses.nats[-1] + _LESS_LIKELY
        for said, answer, found in compared
        if said.generation.stopped
    ]
    if 2 * sum(ending) >= len(ending):
        return
    raise QualityError(
        f"{gguf}: {len(ending) - sum(ending)} of {len(ending)} answers do not end",
        "the model itself ends them with its end token",
        "choose a larger type, such as --quantization Q8_0 or F16",
    )


def _exact(reference: Reference, quantization: str) -> bool:
    return quantization in EXACT and reference.precision == "float32"


def _agreement(expected: Sequence[Generation], answers: Sequence[Generation]) -> float:
    """Share of the reference's tokens, end tokens included, before the first difference."""
    same = total = 0
    for said, answer in zip(expected, answers, strict=True):
        total += len(said.ids) + said.stopped
        same += _common(said.ids, answer.ids)
        if said.stopped and answer.stopped and said.ids == answer.ids:
            same += 1
    return same / total


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _mean(answers: Sequence[TokenLosses]) -> float:
    """Nats a token, over all tokens of all answers."""
    flat = [loss for answer in answers for loss in answer.nats]
    return sum(flat) / len(flat)
