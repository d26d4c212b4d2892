"""The general questions that every candidate gets besides the rows, and how they are marked.

    number    the last number of the answer's first line
    exact     the whole answer; width, case, punctuation and spacing aside
    contains  the words occur in the answer
    regex     the expression is found in the answer

The first model is asked in all languages of the set; those where it is right no more often than by
chance are left out for all others. Chance is measured: how often its answers are right for other
questions of the language.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slimtune.config import Evaluation
from slimtune.data.general_sets import GeneralSet, Item, general_set, set_name
from slimtune.evaluation.bootstrap import wilson
from slimtune.evaluation.measures import exact_match, extract, normalise
from slimtune.inference.answers import AnswerLoss, Examined, Generation
from slimtune.inference.decoding import Decoding
from slimtune.inference.kept_answers import Predictions
from slimtune.inference.questions import Candidate, Exam, Job, Question

_log = logging.getLogger(__name__)

EACH, LANGUAGES = 75, 2  # questions of each language
_FEWEST = 20  # rows, and questions: with fewer, one answer is five points
_SHIFTS = 10  # other questions that each answer is held against


def exam_of(settings: Evaluation, rows: int, models: int) -> Exam | None:
    """The exam of a comparison of so many models on so many rows, None where there is none.

    `auto` asks no more questions than there are rows, so that it never takes longer than they do.
    """
    if settings.general == "off" or models < 2:
        return None
    if settings.general != "auto":
        return Exam(-(-settings.general // LANGUAGES))
    needed = {"forgot", "perplexity_up"} & settings.limits.keys()
    return Exam(min(EACH, max(rows, _FEWEST) // LANGUAGES)) if rows >= _FEWEST or needed else None


@dataclass(frozen=True)
class Paper:
    """What one candidate is given: the items chosen of a set, its texts, and what is kept of both.

    A server is given no texts, which it could not score.
    """

    general: GeneralSet
    items: tuple[Item, ...]
    job: Job
    answers: Predictions
    losses: Predictions
    vocabulary: str

    @classmethod
    def of(cls, candidate: Candidate, job: Job, vocabulary: str = "") -> "Paper | None":
        """The set of the first model, or this one's own; None without an exam, and for a server
        where the questions are beginnings of texts."""
        if job.exam is None:
            return None
        general = general_set(job.exam.set or set_name(vocabulary))
        served = candidate.kind == "server"
        if served and not general.asked:
            return None
        items = general.chosen(job.exam.each, job.exam.languages)
        passages = () if served else general.passages
        texts = tuple(Question(general.name, (), (one.text,)) for one in passages)
        own = replace(job, questions=_questions(items), decoding=Decoding(general.longest))
        own = replace(own, original=None, exam=None)
        kept = (
            Predictions.of(candidate, own),
            Predictions.of(candidate, replace(own, questions=texts)),
        )
        return cls(general, items, own, *kept, vocabulary)

    def examined(self, answers: list[Generation], losses: list[AnswerLoss]) -> Examined:
        return Examined(self.general.name, self.items, answers, losses, self.vocabulary)

    def found(self) -> Examined | None:
        """What an earlier run has kept, where it is whole."""
        answers = self.answers.complete(Generation, lambda _: iter(()))
        losses = self.losses.complete(AnswerLoss, lambda _: iter(()))
        whole = (len(answers), len(losses)) == (len(self.items), len(self.losses.rows))
        return self.examined(answers, losses) if whole else None


def is_right(item: Item, answer: str) -> bool:
    """Whether an answer is right, as `check` of the item says."""
    return any(_CHECKS[item.check](answer, wanted) for wanted in item.answers)


def spoken(examined: Examined) -> tuple[str, ...]:
    """The languages in which a model is right more often than by chance: the lower end of its
    interval against the share of its answers that are right for other questions."""
    found = []
    for language in dict.fromkeys(item.language for item in examined.items):
        pairs = [pair for pair in examined.answered if pair[0].language == language]
        items, texts = zip(*pairs, strict=True)
        right, shifts = _share(items, texts), range(1, min(_SHIFTS + 1, len(items)))
        shifted = [_share(items, texts[by:] + texts[:by]) for by in shifts]
        chance = sum(shifted) / max(len(shifted), 1)
        if wilson(right, len(items))[0] > chance:
            found.append(language)
        else:
            told = (language, right, len(items), chance)
            _log.info(
                "general questions in %s left out: %.1f %% of %d right, by chance %.1f %%", *told
            )
    return tuple(found)


def _share(items: Sequence[Item], texts: Sequence[str]) -> float:
    right = sum(is_right(item, text) for item, text in zip(items, texts, strict=True))
    return 100 * right / len(items)


def _number(answer: str, wanted: str) -> bool:
    lines = answer.strip().splitlines()
    return extract(lines[0] if lines else "", "number") == wanted


def _contains(answer: str, wanted: str) -> bool:
    said, words = normalise(answer), normalise(wanted)
    if not words.isascii():
        return words in said
    return re.search(rf"(?<![a-z0-9]){re.escape(words)}(?![a-z0-9])", said) is not None


_CHECKS = {
    "number": _number,
    "exact": lambda answer, wanted: exact_match(answer, wanted) == 100,
    "contains": _contains,
    "regex": lambda answer, wanted: re.search(wanted, answer.strip()) is not None,
}


def _questions(items: Sequence[Item]) -> tuple[Question, ...]:
    messages = [({"role": "user", "content": item.question},) for item in items]
    return tuple(
        Question(item.id, asked, item.answers) for item, asked in zip(items, messages, strict=True)
    )
