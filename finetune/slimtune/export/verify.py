"""The proof that a GGUF is the model it was made from: same ids, same greedy text, same likelihood.

llama.cpp answers in a child process, transformers in this one in float32. Ids are compared the way
Ollama makes them: the rendered text without BOS, which the file's own settings must add.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from slimtune import prompts
from slimtune.console import InputError, QualityError, SlimTuneError
from slimtune.export.reference import Reference, refer
from slimtune.models import loading, tokenizers
from slimtune.models.llama_cpp import Generation, LlamaCpp
from slimtune.models.llama_library import library
from slimtune.prompts import IGNORED, Message

log = logging.getLogger(__name__)

# Largest rise of the negative log-likelihood: nats per answer token, or this share of it where it
# is above one nat. A trained 260K model at 1.62 nats rises by 0.0001 (F16), 0.001 (Q8_0), 0.009
# (Q5_K_M), 0.024 (Q4_K_M), 0.064 (Q4_0). Above the limit a file is wrong, not just coarse.
TOLERANCES = {
    "F32": 0.001,
    "F16": 0.005,
    "BF16": 0.02,
    "Q8_0": 0.02,
    "Q5_K_M": 0.1,
    "Q4_K_M": 0.2,
    "Q4_0": 0.4,
}
EXACT = ("F32", "F16")  # greedy text must be the same
_SLOTS = 8  # prompts at once: more cost memory for their caches and gain little
_TIE = 0.02  # nats between first and second choice that the f16 cache may swap


@dataclass(frozen=True)
class Proof:
    """What was compared. Greedy and likelihood fields are None where no row was asked for.

    `agreement`: share of the reference's greedy tokens before the first difference; `nll_*`: nats
    per answer token; `stopped`: answers of the GGUF that ended with the end token.
    """

    prompts: int
    rows: int
    agreement: float | None = None
    nll_reference: float | None = None
    nll_gguf: float | None = None
    stopped: int | None = None


@dataclass(frozen=True)
class _Row:
    """A conversation: its prompt as Ollama gets it, training's ids of it, the ids of its answer."""

    text: str
    prompt: list[int]
    answer: list[int]


def verify(
    gguf: Path,
    model_folder: Path | str,
    conversations: Sequence[Sequence[Message]],
    template: str,
    *,
    quantization: str,
    rows: int = 4,
    max_new_tokens: int = 48,
    threads: int | None = None,
) -> Proof:
    """Compares the ids of all conversations' prompts, then text and likelihood of the first `rows`.

    A last assistant message is the answer whose likelihood counts, else the greedy answer is.
    `rows=0` spares loading the model (4 bytes a parameter). Raises QualityError for the first
    difference found, also when llama.cpp crashes or hangs on the file; ResourceError where
    xllamacpp is missing; InputError without conversations.
    """
    library()
    if not conversations:
        raise InputError(f"{gguf}: nothing to prove it with", "no row was given", "give some rows")
    tokenizer = tokenizers.load(str(model_folder))
    everything = [_row(tokenizer, messages, template) for messages in conversations]
    compared = everything[:rows]
    model = loading.load(model_folder, device="cpu", dtype="float32") if compared else None
    eos = tokenizer.eos_token_id
    truth = [refer(model, r.prompt, r.answer, eos, max_new_tokens) for r in compared]
    try:
        answers, losses = _ask(gguf, tokenizer, everything, truth, max_new_tokens, threads)
    except QualityError:
        raise
    except SlimTuneError as error:
        why = f"{error.what}: {error.why}"
        raise QualityError(f"{gguf}: the proof failed", why, error.cure) from error
    if quantization in EXACT:
        for row, said, answer in zip(compared, truth, answers, strict=True):
            _require_same_text(gguf, tokenizer, row, said, answer)
    return _proof(gguf, quantization, len(everything), truth, answers, losses)


def _ask(
    gguf: Path,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[_Row],
    truth: Sequence[Reference],
    max_new_tokens: int,
    threads: int | None,
) -> tuple[list[Generation], list[list[float]]]:
    """llama.cpp's greedy answers, and its losses on the same ids as the reference's."""
    pairs = [(row.prompt, said.scored) for row, said in zip(rows, truth, strict=False)]
    longest = max((len(p) + max(max_new_tokens, len(a)) for p, a in pairs), default=1)
    slots = max(1, min(len(truth), _SLOTS))
    with LlamaCpp(gguf, context=longest + 1, slots=slots, threads=threads) as model:
        _require_same_ids(gguf, model, tokenizer, rows)
        answers = model.generate([prompt for prompt, _ in pairs], max_new_tokens)
        return answers, [model.nll(prompt, answer) for prompt, answer in pairs]


def _proof(
    gguf: Path,
    quantization: str,
    count: int,
    truth: Sequence[Reference],
    answers: Sequence[Generation],
    losses: Sequence[Sequence[float]],
) -> Proof:
    if not truth:
        return Proof(count, 0)
    expected, measured = _mean([said.losses for said in truth]), _mean(losses)
    _require_likelihood(gguf, quantization, expected, measured)
    return Proof(
        prompts=count,
        rows=len(truth),
        agreement=_agreement(truth, answers),
        nll_reference=expected,
        nll_gguf=measured,
        stopped=sum(answer.stopped_at_eos for answer in answers),
    )


def _row(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], template: str) -> _Row:
    prompt = prompts.encode_prompt(tokenizer, messages, template)
    answered = messages[-1]["role"] == "assistant"
    asked = messages[:-1] if answered else messages
    text = prompts.render(
        asked,
        template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        add_generation_prompt=True,
    )
    encoded = prompts.encode(tokenizer, messages, template) if answered else None
    labels = encoded["labels"][len(prompt) :] if encoded else []
    answer = [token for token in labels if token != IGNORED]
    return _Row(text.removeprefix(tokenizer.bos_token or ""), prompt, answer)


def _require_same_ids(
    gguf: Path, model: LlamaCpp, tokenizer: PreTrainedTokenizerFast, rows: Sequence[_Row]
) -> None:
    for number, row in enumerate(rows, 1):
        found = model.tokenize(row.text)
        if found == row.prompt:
            continue
        place = _common(found, row.prompt)
        ours, theirs = (
            tokenizer.convert_ids_to_tokens(i[place : place + 4]) for i in (row.prompt, found)
        )
        raise QualityError(
            f"{gguf}: prompt {number} becomes other tokens than in training",
            f"from token {place + 1} on, training has {ours}, llama.cpp {theirs}",
            "take tokenizer.model and tokenizer.json from the same model, then convert again",
        )


def _require_same_text(
    gguf: Path,
    tokenizer: PreTrainedTokenizerFast,
    row: _Row,
    expected: Reference,
    answer: Generation,
) -> None:
    place = _common(answer.ids, expected.ids)
    same = answer.ids == expected.ids and answer.stopped_at_eos == expected.stopped
    if same or expected.margins[min(place, len(expected.margins) - 1)] < _TIE:
        return
    raise QualityError(
        f"{gguf}: it answers {row.text[-60:]!r} differently than the model",
        f"expected {tokenizer.decode(expected.ids)[:80]!r}, got {answer.text[:80]!r}",
        "report this with the model's config.json: an exact type must not differ",
    )


def _require_likelihood(gguf: Path, quantization: str, expected: float, measured: float) -> None:
    log.info("%s: NLL %.4f, the model's own %.4f nats per token", gguf, measured, expected)
    rise = measured - expected
    allowed = TOLERANCES[quantization] * max(1.0, expected)
    if (abs(rise) if quantization in EXACT else rise) <= allowed:
        return
    raise QualityError(
        f"{gguf}: the likelihood of answers differs by {rise:+.3f} nats per token",
        f"{measured:.3f}, the model's own is {expected:.3f}; {quantization} may cost {allowed:.3f}",
        "choose a larger type, such as --quantization Q8_0 or F16",
    )


def _agreement(expected: Sequence[Reference], answers: Sequence[Generation]) -> float:
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
