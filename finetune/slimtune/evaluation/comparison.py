"""Before and after, honestly: any number of models on the same rows, one in memory at a time.

    base = Candidate("base", "models/sample/base")
    tuned = Candidate("fine-tuned", base.reference, adapter="models/finetuned/lora_adapter")
    comparison = compare([base, tuned], rows, prompts.template("llama2"), config)

The first candidate is the baseline that the others are judged against. Nothing here imports torch:
each candidate is loaded in a child process of its own, whose memory ends with it; a server is asked
from here.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from slimtune.config import Config
from slimtune.console import start_logging
from slimtune.data.learned_rows import NOTHING, Learned
from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.evaluation import fairness
from slimtune.evaluation.answer_room import with_answer_room
from slimtune.evaluation.cautions import Caution, cautions
from slimtune.evaluation.examination import exam_of, spoken
from slimtune.evaluation.fairness import common_template
from slimtune.evaluation.forgetting import forgotten
from slimtune.evaluation.origins import Origin, originals_first, origins_of
from slimtune.evaluation.scoring import measure, row_scores, signatures
from slimtune.evaluation.served import ask_server
from slimtune.inference.answers import Outcome
from slimtune.inference.decoding import Decoding
from slimtune.inference.questions import Candidate, Exam, Job, Original, Question
from slimtune.machine.process import ctrl_c_comes, ctrl_c_waits
from slimtune.machine.refusals import refusal_of
from slimtune.settings.flags import less_memory

_log = logging.getLogger("slimtune")


@dataclass(frozen=True)
class Comparison:
    """Questions, what each model answered, the scores of each answer, and the measures over all.

    `scores[m][r]` are those of model m on row r; `measures[m]` is plain data, ready for JSON, as is
    `forgotten` (see `forgetting`).
    """

    questions: tuple[Question, ...]
    outcomes: list[Outcome]
    scores: list[list[dict[str, float]]]
    measures: list[dict[str, Any]]
    cautions: list[Caution]
    settings: dict[str, Any]
    forgotten: dict[str, Any] | None = None

    @property
    def labels(self) -> list[str]:
        return [outcome.candidate.label for outcome in self.outcomes]


def compare(
    candidates: Sequence[Candidate],
    rows: Sequence[Mapping[str, Any]],
    template: str,
    config: Config,
    *,
    learned: Learned = NOTHING,
    kept_in: Path | None = None,
    isolated: bool = True,
) -> Comparison:
    """Evaluates every candidate on `rows` (canonical) and judges each against the first, and
    against the one it was made from (see `origins`).

    `template` is for models whose folders have no chat_template.jinja of their own. Of the settings
    count those of the model's numbers, of generation and evaluation, and training.max_length:
    prompts keep their end within max_length - max_new_tokens, reference answers are scored within
    max_length, and evaluation.extract finds what counts in an answer where a row names no pattern
    itself.
    `learned` is what the models were trained on, for the share of test questions among it.
    Answers are kept in the folder `kept_in` as they come, and those found there are not asked for
    again.
    `isolated=False` stays in this process, for one small model.

    Raises SettingsError for two equal labels, two prompt templates or an unknown pattern,
    InputError for no rows or a model that cannot be loaded, ResourceError for a killed one.
    """
    questions = questions_of(rows, config.evaluation.extract)
    config = with_answer_room(config, questions)
    evaluation = config.evaluation
    template = agreed_template(candidates, template, questions)
    origins = origins_of(candidates)
    with _kept_in(kept_in) as folder:
        job = Job(
            questions,
            template,
            config.training.max_length,
            Decoding.of(config.generation),
            numbers=config.model,
            token_budget=evaluation.token_budget,
            kept_in=folder,
            exam=exam_of(evaluation, len(questions), len(candidates)),
        )
        if not job.decoding.plain:
            _log.info("answers are chosen by %s", _said(config.generation.words, job.decoding))
        outcomes = _outcomes(candidates, origins, job, _in_child if isolated else _here)
    scores = [row_scores(outcome, questions) for outcome in outcomes]
    measures = measure(outcomes, scores, questions, origins)
    settings = {
        "rows": len(questions),
        "max_length": job.max_length,
        "max_new_tokens": job.decoding.max_new_tokens,
        "decoding": _said(config.generation.words, job.decoding),
        "extract": evaluation.extract,
        "signatures": signatures(questions),
        "own_templates": [
            one.label for one in candidates if fairness.asked_differently(one, template, questions)
        ],
        **job.computed,
        **fairness.count_leaked(questions, learned),
    }
    found = cautions(outcomes, measures, settings)
    lost = forgotten(outcomes)
    return Comparison(questions, outcomes, scores, measures, found, settings, lost)


def _said(words: str, decoding: Decoding) -> str:
    """How answers are chosen, for the records; with the seed where anything is drawn."""
    return words if decoding.greedy else f"{words}, seed {decoding.seed}"


def questions_of(rows: Sequence[Mapping[str, Any]], extract: str) -> tuple[Question, ...]:
    """The rows as questions, each with its own pattern or else `extract`; InputError for none."""
    if not rows:
        raise InputError("no rows to evaluate on", "the test data is empty", "prepare more rows")
    return tuple(Question.of(row, extract) for row in rows)


def agreed_template(
    candidates: Sequence[Candidate], template: str, questions: Sequence[Question]
) -> str:
    """The template that all are asked with; SettingsError where they do not agree on one."""
    _require_distinct(candidates)
    return common_template(candidates, template, questions)


@contextmanager
def _kept_in(folder: Path | None) -> Iterator[Path]:
    """The folder that answers are kept in; one for this comparison alone where there is none."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as own:
        yield Path(own)


def _outcomes(
    candidates: Sequence[Candidate],
    origins: Mapping[str, Origin],
    job: Job,
    run: Callable[[Candidate, Job], Outcome],
) -> list[Outcome]:
    """One after another, each original before those that are compared with it; what the first of
    them was asked is what all others must be."""
    found: dict[str, Outcome] = {}
    originals = {origin.original for origin in origins.values()}
    for candidate in originals_first(candidates, origins):
        label = candidate.label
        first = next(iter(found.values())).asked if found else None
        asked = replace(
            job,
            first=first,
            template=fairness.asked_with(candidate, job.template),
            is_original=label in originals,
            original=_original(found.get(origins[label].original or "")),
            exam=_as_first(job.exam, next(iter(found.values()), None)),
        )
        ask = ask_server if candidate.kind == "server" else run
        found[label] = ask(candidate, asked)
    return [found[candidate.label] for candidate in candidates]


def _as_first(exam: Exam | None, first: Outcome | None) -> Exam | None:
    """The exam in the set and the languages of the first model that was asked."""
    if exam is None or first is None or first.examined is None:
        return exam if first is None else None
    return replace(exam, set=first.examined.set, languages=spoken(first.examined))


def _original(outcome: Outcome | None) -> Original | None:
    if outcome is None or outcome.distributions is None:
        return None
    return Original(outcome.candidate.label, outcome.distributions, outcome.asked)


def _here(candidate: Candidate, job: Job) -> Outcome:
    from slimtune.evaluation.worker import evaluate  # torch and transformers: seconds

    return evaluate(candidate, job)


def _in_child(candidate: Candidate, job: Job) -> Outcome:
    # Spawned, not forked: a fork would share this process's memory and break CUDA.
    speak = start_logging if _log.handlers else None
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=speak) as child:
        try:
            with ctrl_c_waits():  # the process begins here
                answered = child.submit(_told, candidate, job)
            return answered.result()
        except BrokenProcessPool as error:
            raise ResourceError(
                f"{candidate.label}: the process that evaluated it was ended from outside",
                "most often the system does so when memory runs out",
                "use a smaller or quantised model, or a shorter --max-new-tokens",
            ) from error


def _told(candidate: Candidate, job: Job) -> Outcome:
    """In the child: what the system refuses, said where the calls that failed are still known."""
    read = [Path(one) for one in (candidate.reference, candidate.adapter) if one]
    try:
        with ctrl_c_comes():
            return _here(candidate, job)
    except Exception as error:
        if known := refusal_of(error, read, less_memory()):
            raise known from error
        raise


def _require_distinct(candidates: Sequence[Candidate]) -> None:
    labels = [candidate.label for candidate in candidates]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise SettingsError(
            f"two models are called {twice[0]!r}",
            "tables and CSV columns are named after the models",
            "give each its own label",
        )
