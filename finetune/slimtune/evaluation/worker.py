"""One candidate, from loading to its numbers: what runs in a child process of its own."""

import hashlib
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial

from transformers.utils import logging as transformers_logging

from slimtune.evaluation.fairness import require_same_cut
from slimtune.inference import guessing
from slimtune.inference.answers import AnswerLoss, Asked, Candidate, Cost, Generation, Job, Outcome
from slimtune.inference.distributions import Distributions, sample_of
from slimtune.inference.engines import Engine, PromptTokenizer, Rows, open_engine
from slimtune.inference.kept_answers import Predictions, files_of
from slimtune.machine.process import peak_memory
from slimtune.models import loading
from slimtune.models.adapters import Adapter
from slimtune.models.compute import Compute
from slimtune.models.folders import local_folder
from slimtune.models.gguf_header import read_gguf
from slimtune.models.weights import Checkpoint
from slimtune.prompts import IGNORED, Encoded, encode, encode_prompt

_log = logging.getLogger(__name__)

_FILLING = re.compile(r"\[PAD\d+\]")  # llama.cpp's converter's name for an id without a token


def evaluate(candidate: Candidate, job: Job) -> Outcome:
    """Answers, answer losses and cost of one candidate; nothing of it stays in memory.

    What an interrupted run with the same weights and settings kept in `job.kept_in` is not done
    again. Raises InputError where its prompts cannot be cut as the first candidate's.
    """
    _quiet_transformers()
    kept = Predictions.of(candidate, job)
    if known := kept.outcome(candidate, job.is_original):
        _log.info("%s: finished in an earlier run", candidate.label)
        return known
    if job.first is not None:
        loading.explained(Compute.of(job.numbers))
    started = time.perf_counter()
    room = job.max_length + job.decoding.max_new_tokens
    engine = open_engine(candidate, job.numbers, room, job.token_budget)
    try:
        loaded = time.perf_counter() - started
        _log.info("%s: loaded in %.1f s", candidate.label, loaded)
        outcome = _ask(engine, candidate, job, kept, loaded)
    finally:
        engine.close()
    kept.finish(outcome)
    return outcome


def _ask(
    engine: Engine, candidate: Candidate, job: Job, kept: Predictions, load_seconds: float
) -> Outcome:
    started = time.perf_counter()
    cut, examples, asked = _encoded(engine, job)
    require_same_cut(candidate.label, asked, job.first or asked)
    _log.info("%s: answering %d prompts", candidate.label, len(cut))
    generations = kept.complete(Generation, partial(engine.generate, cut, job.decoding))
    _log.info("%s: scoring the reference answers", candidate.label)
    plan = _plan(engine, examples, asked, job, kept)
    losses = kept.complete(AnswerLoss, partial(_losses, engine, examples, plan))
    reading, writing = engine.speed(max(cut, key=len))
    parameters, size = _footprint(candidate)
    cost = Cost(
        parameters=parameters,
        bytes_on_disk=size,
        load_seconds=load_seconds,
        prompt_tokens_per_second=reading,
        generated_tokens_per_second=writing,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_memory(engine.process),
    )
    worse = _guessing(engine, losses, job.max_length)
    return Outcome(candidate, generations, losses, asked, cost, worse, plan.keep)


def _guessing(engine: Engine, rows: Sequence[AnswerLoss], longest: int) -> float | None:
    """The best loss, in nats a token, of a model that is worse than guessing on rows and texts."""
    tokenizer = engine.tokenizer
    loss = sum(row.nats for row in rows) / max(1, sum(row.tokens for row in rows))
    if not guessing.is_worse(loss, len(tokenizer)):
        return None
    _log.info("worse than guessing on the test rows: a few plain texts are scored, too")
    plain = engine.losses(guessing.examples(tokenizer, longest))
    found = [one.nats / max(1, one.tokens) for _, one in plain]
    best = min([loss, *found])
    return best if guessing.is_worse(best, len(tokenizer)) else None


def _encoded(engine: Engine, job: Job) -> tuple[list[list[int]], list[Encoded | None], Asked]:
    """Prompts within their room, whole rows (None where the answers exceed max_length), and what
    became of the rows."""
    tokenizer, rows = engine.tokenizer, job.questions
    room = max(job.max_length - job.decoding.max_new_tokens, 2)
    prompts = [encode_prompt(tokenizer, row.messages, job.template) for row in rows]
    cut = [encode_prompt(tokenizer, row.messages, job.template, room) for row in rows]
    examples = [encode(tokenizer, row.conversation, job.template, job.max_length) for row in rows]
    # Equal for models that read all rows as the same token ids.
    digest = hashlib.sha256(repr((prompts, examples)).encode()).hexdigest()
    too_long = tuple(row for row, prompt in enumerate(prompts) if len(prompt) > room)
    return cut, examples, Asked(digest, too_long, _vocabulary(tokenizer))


def _vocabulary(tokenizer: PromptTokenizer) -> str:
    """A digest of all tokens; those that only fill up a GGUF's matrix do not count."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    while tokens and _FILLING.fullmatch(str(tokens[-1])):
        tokens.pop()
    return hashlib.sha256(repr(tokens).encode("utf-8", "backslashreplace")).hexdigest()


def _plan(
    engine: Engine, examples: Sequence[Encoded | None], asked: Asked, job: Job, kept: Predictions
) -> Distributions:
    """What becomes of the predictions on each example that fits: kept, compared, or neither."""
    original = job.original if job.original and asked.reads_as(job.original.asked) else None
    keep = kept.distributions if job.is_original else None
    fitting = [example for example in examples if example is not None]
    tokens = [sum(label != IGNORED for label in one["labels"][1:]) for one in fitting]
    rows = sample_of(tokens, len(engine.tokenizer)) if keep or original else frozenset()
    if 0 < len(rows) < len(fitting):
        _log.info("%d of %d rows are compared token by token", len(rows), len(fitting))
    return Distributions(rows, keep, original and original.distributions)


def _losses(
    engine: Engine, examples: Sequence[Encoded | None], plan: Distributions, known: Rows
) -> Iterator[tuple[int, AnswerLoss]]:
    """The loss of each row's answers; none for answers longer than max_length.

    Of an original a row is known only where what it expects there is on disk.
    """
    rows = [row for row, example in enumerate(examples) if example is not None]
    yield from ((row, AnswerLoss(0.0, 0)) for row in set(range(len(examples))) - set(rows))
    fitting = [examples[row] for row in rows]
    places = {place for place, row in enumerate(rows) if row in known} - plan.missing()
    yield from ((rows[place], loss) for place, loss in engine.losses(fitting, places, plan))


def _footprint(candidate: Candidate) -> tuple[int, int]:
    """(parameters, bytes of weights on disk), an adapter's included."""
    files = files_of(candidate)
    size = sum(file.stat().st_size for file in files)
    if candidate.kind == "gguf":
        return sum(read_gguf(file).parameters for file in files), size
    parameters = Checkpoint(local_folder(candidate.reference)).parameters
    if candidate.adapter:
        adapter = Adapter(candidate.adapter)
        parameters += sum(math.prod(info.shape) for info in adapter.tensors.values())
    return parameters, size


def _quiet_transformers() -> None:
    """Its bars and warnings would bury the comparison's own words."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
