"""A model that a server runs, as a candidate: which one is meant, and what it answers to all rows.

The server gets the messages and the decoding; template, tokenizer and context are its own. So its
answers compare with every other model's, and what only weights at hand can tell is left out: the
loss of reference answers, memory, the speed of reading. Nothing here needs torch.
"""

import difflib
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from slimtune.console import note, tenth_done
from slimtune.errors import InputError, SettingsError
from slimtune.evaluation.examination import Paper
from slimtune.evaluation.fairness import require_same_cut
from slimtune.inference.answers import ANSWERED, Asked, Candidate, Cost, Generation, Job, Outcome
from slimtune.inference.kept_answers import Predictions, RowNumbers
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import AT_ONCE, ServerClient
from slimtune.inference.server_replies import Listed
from slimtune.models.ollama_store import blob_of, full_name, is_ollama, plain_name

_log = logging.getLogger(__name__)

_HERE = 2.0  # seconds in which an Ollama that runs says so


def served_candidate(reference: str) -> Candidate:
    """The model that an address or `ollama:NAME` means.

    Where no Ollama answers, the file of its store is read in its place, which is said. Raises
    SettingsError for what is no address, or means none of several models; InputError for a model
    that the server lacks; ResourceError where it does not answer.
    """
    if is_ollama(reference):
        full_name(reference)
    server = Server.of(reference)
    if server.ollama and not _runs(server):
        label = plain_name(reference)
        note(f"{label}: no Ollama answers at {server.base}: llama.cpp reads the file of its store")
        return Candidate(label, str(blob_of(reference)))
    found = _listed(server)
    named = server.named(found.name)
    return Candidate(named.label, named.reference, fingerprint=found.fingerprint)


def _runs(server: Server) -> bool:
    with ServerClient(server, patience=_HERE, pauses=()) as client:
        return client.version() is not None


def _listed(server: Server) -> Listed:
    """What the server says about its model, which is the only one where none is named."""
    with ServerClient(server, pauses=AT_ONCE) as client:
        known = client.listed()
    if known is None and server.model:
        return Listed(server.model)
    names = [one.name for one in known or ()]
    if not server.model and len(names) == 1:
        return known[0]
    if not server.model:
        raise SettingsError(
            f"{server.shown}: which model?",
            f"it has {_some(names)}" if names else "it does not say which it has",
            f"write the name after #: {server.named(names[0] if names else 'NAME').reference}",
        )
    match = next((one for one in known or () if _means(server, one.name)), None)
    if match is None:
        near = difflib.get_close_matches(server.model, names, n=1)
        other = f"write {server.named(near[0] if near else names[0]).reference}" if names else ""
        pull = f"`ollama pull {server.model}`" if server.ollama else "load it in the server"
        raise InputError(
            f"{server.shown}: it has no such model",
            f"it has {_some(names)}" if names else "it has none",
            f"{pull}, or {other}" if other else pull,
        )
    return match if not server.ollama else match._replace(name=server.model)


def _means(server: Server, name: str) -> bool:
    """Whether a listed model is the one that was named; Ollama fills names up, and ignores case."""
    if not server.ollama:
        return name == server.model
    try:
        listed = full_name(name)
    except SettingsError:
        return False
    return [part.lower() for part in listed] == [p.lower() for p in full_name(server.model)]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name if len(name) < 60 else f"{name[:59]}…" for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def ask_server(candidate: Candidate, job: Job) -> Outcome:
    """Its answers to all rows, one after another, and what it took.

    What an interrupted run kept in `job.kept_in` is not asked for again. Raises InputError where
    other models lose the start of prompts that it would get whole, and what `ServerClient` raises.
    """
    kept, paper = Predictions.of(candidate, job), Paper.of(candidate, job)
    examined = paper and paper.found()
    known = kept.outcome(candidate)
    if known and (examined or paper is None):
        _log.info("%s: finished in an earlier run", candidate.label)
        return replace(known, examined=examined)
    asked = Asked(hashlib.sha256(candidate.reference.encode()).hexdigest(), ())
    require_same_cut(candidate.label, asked, job.first or asked)
    started, writing = time.perf_counter(), _Clock()
    server = Server.of(candidate.reference)
    _log.info("%s: asking %s for %d answers", candidate.label, server.base, len(job.questions))
    with ServerClient(server) as client:
        generations = kept.complete(Generation, partial(_answers, client, job, writing))
        if paper:
            general = partial(_answers, client, paper.job, _Clock())
            examined = paper.examined(paper.answers.complete(Generation, general), [])
        listed = client.listed() or []
    told = next((one for one in listed if _means(server, one.name)), Listed(server.model))
    cost = Cost(
        parameters=told.parameters,
        bytes_on_disk=told.bytes,
        load_seconds=None,
        prompt_tokens_per_second=None,
        generated_tokens_per_second=writing.tokens_per_second,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=None,
    )
    outcome = Outcome(candidate, generations, [], asked, cost)
    kept.finish(outcome)
    return replace(outcome, examined=examined)


class _Clock:
    """Tokens a second of all answers, from the first piece of each to its last."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def _answers(
    client: ServerClient, job: Job, writing: _Clock, known: RowNumbers
) -> Iterator[tuple[int, Generation]]:
    missing = [row for row in range(len(job.questions)) if row not in known]
    for number, row in enumerate(missing, start=1):
        messages = job.questions[row].messages
        reply = client.answer(messages, job.decoding.for_row(row))
        writing.add(*reply.writing)
        yield row, Generation(reply.text, None, reply.stopped, counted=reply.tokens)
        done, total = len(known) + number, len(job.questions)
        if tenth_done(done - 1, done, total):
            _log.info("%d of %d %s", done, total, ANSWERED)
