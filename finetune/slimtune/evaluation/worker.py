"""One candidate, from loading to its numbers: what runs in a child process of its own."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFReader
from transformers.utils import logging as transformers_logging

from slimtune.artifacts import peak_memory
from slimtune.evaluation.answers import AnswerLoss, Candidate, Cost, Job, Outcome, Question
from slimtune.evaluation.engines import Engine, open_engine, own_template
from slimtune.models.adapters import WEIGHTS_FILE, Adapter
from slimtune.models.checkpoints import Checkpoint
from slimtune.models.folders import weight_files
from slimtune.models.hub import resolve
from slimtune.prompts import Encoded, encode, encode_prompt

log = logging.getLogger(__name__)

_STATUS = "/proc/{}/status"


def evaluate(candidate: Candidate, job: Job) -> Outcome:
    """Answers, answer losses and cost of one candidate; nothing of it stays in memory."""
    _quiet_transformers()
    started = time.perf_counter()
    engine = open_engine(candidate, job.compute, job.max_length + job.max_new_tokens)
    try:
        loaded = time.perf_counter() - started
        log.info("%s: loaded in %.1f s", candidate.label, loaded)
        return _ask(engine, candidate, job, loaded)
    finally:
        engine.close()


def _ask(engine: Engine, candidate: Candidate, job: Job, load_seconds: float) -> Outcome:
    started = time.perf_counter()
    template = own_template(candidate, job.template)
    tokenizer, room = engine.tokenizer, max(job.max_length - job.max_new_tokens, 2)
    prompts = [encode_prompt(tokenizer, q.messages, template) for q in job.questions]
    cut = [encode_prompt(tokenizer, q.messages, template, room) for q in job.questions]
    log.info("%s: answering %d prompts", candidate.label, len(cut))
    generations = engine.generate(cut, job.max_new_tokens)
    log.info("%s: scoring the reference answers", candidate.label)
    losses = _losses(engine, job.questions, template, job.max_length)
    reading, writing = engine.speed(max(cut, key=len))
    parameters, size = _footprint(candidate)
    cost = Cost(
        parameters=parameters,
        bytes_on_disk=size,
        load_seconds=load_seconds,
        prompt_tokens_per_second=reading,
        generated_tokens_per_second=writing,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=_peak_memory(engine.process),
    )
    shortened = sum(len(prompt) > room for prompt in prompts)
    return Outcome(candidate, template, generations, losses, shortened, cost)


def _losses(
    engine: Engine, questions: Sequence[Question], template: str, max_length: int
) -> list[AnswerLoss]:
    """The loss of each row's answers; (0, 0) for an answer longer than `max_length`."""
    examples = [encode(engine.tokenizer, q.conversation, template, max_length) for q in questions]
    fitting: list[Encoded] = [example for example in examples if example is not None]
    losses = iter(engine.losses(fitting))
    return [next(losses) if example else AnswerLoss(0.0, 0) for example in examples]


def _footprint(candidate: Candidate) -> tuple[int, int]:
    """(parameters, bytes of weights on disk), an adapter's included."""
    if candidate.kind == "gguf":
        tensors = GGUFReader(candidate.reference).tensors
        return sum(int(t.n_elements) for t in tensors), Path(candidate.reference).stat().st_size
    folder = resolve(candidate.reference)
    parameters = Checkpoint(folder).parameters
    files = weight_files(folder)
    if candidate.adapter:
        adapter = Adapter(candidate.adapter)
        parameters += sum(math.prod(info.shape) for info in adapter.tensors.values())
        files = [*files, Path(candidate.adapter) / WEIGHTS_FILE]
    return parameters, sum(file.stat().st_size for file in files)


def _peak_memory(process: int) -> int:
    """Peak resident bytes of the process that holds the model: this one, or llama.cpp's.

    Linux counts a parent's memory into a child's ru_maxrss; VmHWM starts anew with the program.
    """
    status = Path(_STATUS.format(process))
    if not status.is_file():
        return peak_memory()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _quiet_transformers() -> None:
    """Its bars and warnings would bury the comparison's own words."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
