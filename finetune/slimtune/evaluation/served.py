"""A model that a server runs, as a candidate: what it answers to all rows, and what that took.

The server gets the messages and the decoding; template, tokenizer and context are its own. So its
answers compare with every other model's, and what only weights at hand can tell is left out: the
loss of reference answers, memory, the speed of reading. Nothing here needs torch.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from slimtune.evaluation.examination import Paper
from slimtune.evaluation.fairness import require_same_cut
from slimtune.inference.answers import Cost, Generation, Outcome
from slimtune.inference.kept_answers import Predictions, RowNumbers
from slimtune.inference.questions import Asked, Candidate, Job
from slimtune.inference.served_models import listed_entry, replies
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import ServerClient

_log = logging.getLogger(__name__)


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
        told = listed_entry(client)
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
    for row, reply in replies(client, job.questions, job.decoding, known):
        writing.add(*reply.writing)
        yield row, Generation(reply.text, None, reply.stopped, counted=reply.tokens)
