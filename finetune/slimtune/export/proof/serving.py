"""What is served is what was measured: a server's answers beside those of the file itself.

The file's own answers are llama.cpp's in a process of ours, each row alone as a client asks, with
the decoding of the settings. A server gets the same conversations and not a word on sampling.

Two computations of one file differ in last digits, and those of a quantised one in more: llama.cpp
computes four tokens at once by other kernels than one (SmolLM2 in Q4_K_M: 0.3 nats). Where the two
likeliest tokens of a step are as near to each other as that, an answer may go on either way.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimtune.errors import QualityError
from slimtune.export.proof.reference import Reference
from slimtune.export.quant_types import TIE
from slimtune.inference.answers import Generation
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.llama_server import LlamaServer
from slimtune.inference.server_client import Reply
from slimtune.inference.server_troubles import CONTROL

_PROPS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
_AS_GIVEN = 1e-4  # a server has its settings in float32


@dataclass(frozen=True)
class OwnAnswers:
    """What a file says to `prompts` (token ids) in llama.cpp, with an adapter on it or without."""

    gguf: Path
    adapter: Path | None
    prompts: Sequence[list[int]]
    generations: list[Generation]

    def tied(self, row: int, text: str) -> bool:
        """Whether the step at which `text` leaves the own answer could as well go its way."""
        prompt, ids = self.prompts[row], self.generations[row].ids
        room = len(prompt) + len(ids) + 1
        with LlamaCpp(self.gguf, adapter=self.adapter, context=room) as model:
            many, one = (model.margins(prompt, ids, at_once) for at_once in (0, 1))
            so_far = model.texts(ids)
        theirs = _readable(text)
        left_at = (i for i, own in enumerate(so_far) if not theirs.startswith(_readable(own)))
        place = next(left_at, len(ids))
        apart = max(abs(a - b) for a, b in zip(many, one, strict=True))
        return min(many[place], one[place]) < max(TIE, apart)


@dataclass(frozen=True)
class Difference:
    """A row (from 1) that a server answers otherwise; tokens are those of its prompt."""

    row: int
    question: str
    expected: str
    served: str
    prompt_tokens: int
    served_tokens: int | None

    @property
    def other_prompt(self) -> bool:
        return self.served_tokens not in (None, self.prompt_tokens)

    @property
    def words(self) -> str:
        """Both texts, and the prompt's tokens as training and the server have them."""
        counts = f"{self.prompt_tokens} in training, {self.served_tokens} served"
        return (
            f"expected {self.expected[:80]!r}, served {self.served[:80]!r}; prompt tokens: {counts}"
        )


@dataclass(frozen=True)
class Served:
    """Of `rows`, how many got the file's own answer, and how many another one at a tie."""

    rows: int
    equal: int
    ties: int
    first: Difference | None

    @property
    def words(self) -> str:
        tied = f", {self.ties} otherwise where two tokens are as likely" if self.ties else ""
        return f"{self.equal} of {self.rows} answers equal{tied}"


def own_answers(
    gguf: Path,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    adapter: Path | None = None,
    patience: float = 600.0,
) -> OwnAnswers:
    """What llama.cpp makes of the prompts, one after another."""
    room = max(map(len, prompts)) + decoding.max_new_tokens + 1
    with LlamaCpp(gguf, adapter=adapter, context=room, patience=patience) as model:
        generations = model.generate(prompts, decoding)
    return OwnAnswers(gguf, adapter, prompts, generations)


def compare(
    own: OwnAnswers,
    questions: Sequence[str],
    answers: Sequence[Reply],
    stops: Sequence[str] = (),
) -> Served:
    """A server's answers beside the file's own, which end before any of `stops` as the server's do.

    A prompt of another number of tokens is a difference, whatever the answer.
    """
    equal = ties = 0
    first = None
    for row, answer in enumerate(answers):
        expected = _until(own.generations[row].text, stops)
        counts = len(own.prompts[row]), answer.prompt_tokens
        difference = Difference(row + 1, questions[row], expected, answer.text, *counts)
        same = _readable(expected) == _readable(answer.text)
        if same and not difference.other_prompt:
            equal += 1
        elif not difference.other_prompt and own.tied(row, answer.text):
            ties += 1
        else:
            first = first or difference
    return Served(len(answers), equal, ties, first)


def require_served(
    gguf: Path,
    reference: Reference,
    decoding: Decoding,
    *,
    adapter: Path | None = None,
    chat_template: str | None = None,
    patience: float = 600.0,
) -> Served:
    """Asks llama.cpp's server the reference's rows, and expects the file's own answers.

    A client names no sampling; where the decoding draws, it names the row's seed. Raises
    QualityError for a server that would sample otherwise than `decoding`, and for the first row
    that is answered otherwise; what `LlamaServer` raises.
    """
    prompts = [row.prompt for row in reference.rows]
    own = own_answers(gguf, prompts, decoding, adapter=adapter, patience=patience)
    with LlamaServer(
        gguf,
        adapter=adapter,
        chat_template=chat_template,
        context=max(map(len, prompts)) + decoding.max_new_tokens + 1,
        patience=patience,
    ) as server:
        _require_sampling(gguf, decoding, server.sampling())
        answers = [
            server.chat(row.asked, decoding.for_row(number))
            for number, row in enumerate(reference.rows)
        ]
    found = compare(own, [row.asked[-1]["content"] for row in reference.rows], answers)
    if found.first:
        raise _otherwise(gguf, found.first)
    return found


def _require_sampling(gguf: Path, decoding: Decoding, sampling: dict[str, Any]) -> None:
    """A server must choose tokens as evaluation does for a client that says nothing of it.

    Where the likeliest is taken, what narrows the choice has no effect.
    """
    names = ("temperature", "repeat_penalty") if decoding.greedy else _PROPS
    for name in names:
        wanted, found = getattr(decoding, name), sampling.get(name)
        if not isinstance(found, int | float) or abs(found - wanted) > _AS_GIVEN:
            raise QualityError(
                f"{gguf}: its server samples with {name} {found}, evaluation with {wanted}",
                "who asks it and says nothing of sampling gets other answers than were measured",
                "convert again with convert_to_gguf.py, which writes the settings of `generation` "
                "into the file",
            )


def _otherwise(gguf: Path, difference: Difference) -> QualityError:
    what = f"{gguf}: llama.cpp's server answers row {difference.row} otherwise than evaluation"
    if difference.other_prompt:
        cure = (
            "llama.cpp renders the model's chat template otherwise: choose a shipped one with "
            "--prompt-template and train with it, or report this with chat_template.jinja"
        )
    else:
        cure = "report this with the model's config.json: server and library must agree"
    return QualityError(what, f"{difference.question[:60]!r}: {difference.words}", cure)


def _until(text: str, stops: Sequence[str]) -> str:
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places, default=len(text))].strip()


def _readable(text: str) -> str:
    """Without half a character at the end and what a terminal would obey, and broken bytes as one
    U+FFFD: servers differ there.
    """
    return re.sub("\ufffd+", "\ufffd", CONTROL.sub("", text).strip()).rstrip("\ufffd").rstrip()
