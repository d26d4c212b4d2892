"""One candidate, from loading to its numbers: what runs in a child process of its own."""

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from transformers.utils import logging as transformers_logging

from slimtune.evaluation import drafts
from slimtune.evaluation.examination import Paper
from slimtune.evaluation.fairness import require_same_cut
from slimtune.inference import guessing
from slimtune.inference.answers import AnswerLoss, Cost, Examined, Generation, Outcome
from slimtune.inference.distributions import Distributions, sample_of
from slimtune.inference.engines import Engine, Rows, open_engine
from slimtune.inference.kept_answers import Predictions, files_of
from slimtune.inference.questions import Asked, Candidate, Job
from slimtune.machine.process import peak_memory
from slimtune.models import loading, tokenizers
from slimtune.models.adapters import Adapter
from slimtune.models.compute import Compute
from slimtune.models.folders import local_folder
from slimtune.models.gguf_header import read_gguf
from slimtune.models.weights import Checkpoint
from slimtune.prompts import IGNORED, ChatMessage, Encoded, encode, encode_prompt

_log = logging.getLogger(__name__)


def evaluate(candidate: Candidate, job: Job) -> Outcome:
    """Answers, answer losses and cost of one candidate; nothing of it stays in memory.

    What an interrupted run with the same weights and settings kept in `job.kept_in` is not done
    again. Raises InputError where its prompts cannot be cut as the first candidate's.
    """
    _quiet_transformers()
    kept = Predictions.of(candidate, job)
    if known := kept.outcome(candidate, job.is_original):
        paper = Paper.of(candidate, job, known.asked.vocabulary)
        examined = paper and paper.found()
        if examined or paper is None:
            _log.info("%s: finished in an earlier run", candidate.label)
            return replace(known, examined=examined)
    if job.first is not None:
        loading.explained(Compute.of(job.numbers))
    started = time.perf_counter()
    room = job.max_length + job.decoding.max_new_tokens
    engine = open_engine(candidate, job.numbers, room, job.token_budget)
    try:
        loaded = time.perf_counter() - started
        _log.info("%s: loaded in %.1f s", candidate.label, loaded)
        outcome = _ask(engine, candidate, job, kept, loaded)
        kept.finish(outcome)
        return replace(outcome, examined=_examine(engine, candidate, job, outcome.asked))
    finally:
        engine.close()


def _ask(
    engine: Engine, candidate: Candidate, job: Job, kept: Predictions, load_seconds: float
) -> Outcome:
    started = time.perf_counter()
    cut, examples, asked = _encoded(engine, job)
    require_same_cut(candidate.label, asked, job.first or asked)
    _log.info("%s: scoring the reference answers", candidate.label)
    plan = _plan(engine, examples, asked, job, kept)
    losses = kept.complete(AnswerLoss, partial(_losses, engine, examples, plan))
    told = drafts.told(engine, cut, examples, losses, job.decoding)
    _log.info("%s: %s", candidate.label, _to_answer(len(cut), len(told)))
    generations = kept.complete(
        Generation, partial(drafts.answers, engine, cut, told, job.decoding)
    )
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


def _to_answer(prompts: int, told: int) -> str:
    if not told:
        return f"answering {prompts} prompts"
    return f"its own answer is the reference in {told} of {prompts} rows; answering the others"


def _examine(engine: Engine, candidate: Candidate, job: Job, asked: Asked) -> Examined | None:
    """The general questions and texts of the job's exam, where it has one."""
    paper = Paper.of(candidate, job, asked.vocabulary)
    if paper is None:
        return None
    greedy = paper.job.decoding
    room = max(job.max_length + job.decoding.max_new_tokens - greedy.max_new_tokens, 2)
    prompts = [_asked(engine, paper, one.messages, room) for one in paper.job.questions]
    texts = [engine.tokenizer(one.text).input_ids for one in paper.general.passages]
    examples = [_plain_text(list(ids)[: job.max_length]) for ids in texts]
    answers = []
    if prompts:
        _log.info("%s: answering %d general questions", candidate.label, len(prompts))
        answers = paper.answers.complete(Generation, partial(engine.generate, prompts, greedy))
    return paper.examined(
        answers, paper.losses.complete(AnswerLoss, partial(engine.losses, examples))
    )


def _asked(engine: Engine, paper: Paper, messages: Sequence[ChatMessage], room: int) -> list[int]:
    """A question in the prompt template, or the beginning of a text as it is."""
    if paper.general.asked:
        return encode_prompt(engine.tokenizer, messages, paper.job.template, room)
    return list(engine.tokenizer(messages[0]["content"]).input_ids)[-room:]


def _plain_text(ids: list[int]) -> Encoded:
    return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}


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
    return cut, examples, Asked(digest, too_long, tokenizers.vocabulary_digest(tokenizer))


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
