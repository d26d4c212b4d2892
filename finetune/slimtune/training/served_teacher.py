"""A teacher that a server runs: a model of Ollama's, or of an address that speaks as OpenAI's does.

It is asked for answers, one after another, by the client that comparisons use: at this machine, or
where the user named another host; the key is the environment's and recorded nowhere. What it said
is kept at once, so a run that was stopped goes on. Then it must be the same model still: by what
the server says of it, and by three of its answers, which are asked for again.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from slimtune.artifacts import run_of
from slimtune.artifacts.files import json_or_none, write_json
from slimtune.console import near
from slimtune.errors import InputError
from slimtune.inference.answers import Generation
from slimtune.inference.decoding import Decoding
from slimtune.inference.kept_answers import RowNumbers
from slimtune.inference.questions import Candidate, Question
from slimtune.inference.served_models import listed_entry, replies, served_candidate
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import ServerClient

_log = logging.getLogger(__name__)

_PROBES = 3  # greedy answers of one model may differ by a rounding; all three of them hardly do


def found(named: str) -> Candidate:
    """The model that an address or `ollama:NAME` means: a server's, or a GGUF file where no Ollama
    answers. Raises what `served_candidate` raises."""
    return served_candidate(named)


def require_same(served: Candidate, folder: Path) -> None:
    """InputError where the model that wrote the finished answers of `folder` is another by now."""
    before = run_of(folder)["metrics"].get("teacher_fingerprint")
    if before is not None and served.fingerprint not in (None, before):
        why = f"its fingerprint was {before}, now {served.fingerprint}"
        raise _changed(served.reference, why, folder)


@dataclass(frozen=True)
class Identity:
    """What a server says that its model is: name, fingerprint, parameters and bytes, where told."""

    address: str
    model: str
    fingerprint: str | None = None
    parameters: int | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, client: ServerClient) -> Self:
        told = listed_entry(client)
        return cls(client.server.base, *told)

    @property
    def facts(self) -> dict[str, str | int]:
        """For the records: only what the server told."""
        return {f"teacher_{name}": value for name, value in asdict(self).items() if value}


class ServedTeacher:
    """One server's model as it writes answers; `noted` is the file that says which model an earlier
    run asked, `kept` what that one answered.

    InputError where it is another model by now, at the beginning or at the end. Use it in a `with`
    block.
    """

    def __init__(
        self,
        reference: str,
        noted: Path,
        answer_tokens: int,
        kept: Sequence[tuple[Question, Generation]] = (),
    ) -> None:
        self.reference, self.noted, self.kept = reference, noted, kept
        self.decoding = Decoding(answer_tokens)
        self.client = ServerClient(Server.of(reference))

    def __enter__(self) -> Self:
        try:
            self.identity = Identity.of(self.client)
            if self.kept:
                self._require_same(json_or_none(self.noted) or {}, self.identity)
                self._require_same_answers()
            write_json(self.noted, asdict(self.identity))
        except BaseException:
            self.client.close()
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._require_same(asdict(self.identity), Identity.of(self.client))
        finally:
            self.client.close()

    @property
    def facts(self) -> dict[str, str | int]:
        return self.identity.facts

    @property
    def stopped(self) -> Path:
        """What an earlier run has left, as a shell names it."""
        return self.noted.with_name(self.noted.name.replace(".model.json", ".*"))

    def answers(
        self, questions: Sequence[Question], known: RowNumbers
    ) -> Iterator[tuple[int, Generation]]:
        """(row, answer) of each question that is not known yet."""
        for row, reply in replies(self.client, questions, self.decoding, known):
            yield row, Generation(reply.text, None, reply.stopped, counted=reply.tokens)

    def _require_same(self, before: dict[str, Any], now: Identity) -> None:
        for name, value in asdict(now).items():
            if before.get(name) not in (None, value):
                raise _changed(
                    self.reference, f"its {name} was {before[name]}, now {value}", self.stopped
                )

    def _require_same_answers(self) -> None:
        probes = self.kept[:: max(1, len(self.kept) // _PROBES)][:_PROBES]
        _log.info("teacher: %d of its earlier answers are asked for again", len(probes))
        again = [self.client.answer(one.messages, self.decoding).text for one, _ in probes]
        pairs = zip(again, probes, strict=True)
        if not any(new == old.text for new, (_, old) in pairs):
            question, old = probes[0]
            asked, before, now = question.prompt[:60], old.text[:60], again[0][:60]
            why = f"to {asked!r} it said {before!r}, now {now!r}"
            raise _changed(self.reference, why, self.stopped)


def _changed(reference: str, why: str, kept: Path) -> InputError:
    return InputError(
        f"{reference}: another model than the one that wrote the answers so far",
        why,
        f"load that model again, or delete {near(kept)}: the new one answers all rows",
    )
