"""The shapes that rows come in: Alpaca, messages, question and answer, and so on.

A new shape is one function here and one entry of config/catalogues.yaml. Each of its columns may
have several names; what a row holds beyond them is told as not used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from slimtune.config.catalogues import bind, facts
from slimtune.data.turns import BadRow, Message, as_text, exchange, listed_turns, turn
from slimtune.errors import SettingsError

RawRow = Mapping[str, Any]

# Names of one and the same column, the most usual first: a row's first that is not empty counts.
INSTRUCTION_NAMES = ("instruction", "指令")
INPUT_NAMES = ("input", "context", "passage", "background", "输入", "上下文", "背景", "材料")
OUTPUT_NAMES = ("output", "response", "target", "输出", "回复")
QUESTION_NAMES = (
    "question",
    "questions",
    "query",
    "问题",
    "提问",
    "问",
    "标准问",
    "客户提问",
    "input",
)
ANSWER_NAMES = (
    "answer",
    "answers",
    "response",
    "reply",
    "target",
    "回答",
    "答案",
    "答",
    "标准答",
    "回复",
)
CONTEXT_NAMES = ("context", "passage", "background", "上下文", "背景", "材料")
COMPLETION_NAMES = ("completion", "response")


def alpaca(row: RawRow) -> list[Message]:
    """`instruction`, `output`; optional `input`, `system`, `history`: earlier [user, answer].

    What the instruction is about may be called `context` (Dolly). Where `input` and `output` are
    lists, they are the two sides of one conversation.
    """
    if isinstance(row.get("input"), list) and isinstance(row.get("output"), list):
        return _two_sides(row)
    question = _with(_text(row, *INSTRUCTION_NAMES), _text(row, *INPUT_NAMES, required=False))
    return [*_system(row), *_history(row), *exchange(question, _text(row, *OUTPUT_NAMES))]


def qa(row: RawRow) -> list[Message]:
    """A `question` and its `answer`, under the spellings of `QUESTION_NAMES` and `ANSWER_NAMES`.

    A passage that the question is about (`CONTEXT_NAMES`) follows it, as Alpaca's input does:
    without it the model would learn to answer from nothing.
    """
    # Beside an instruction, an input is what that is about; alone (Firefly) it is what is asked.
    names = QUESTION_NAMES[:-1] if "instruction" in row else QUESTION_NAMES
    question = _with(_text(row, *names), _text(row, *CONTEXT_NAMES, required=False))
    answer = _text(row, *ANSWER_NAMES)
    return [*_system(row), *_history(row), *exchange(question, answer)]


def messages(row: RawRow) -> list[Message]:
    """OpenAI's `messages`: a list of {"role", "content"}."""
    return [*_system(row), *listed_turns(row, "messages")]


def sharegpt(row: RawRow) -> list[Message]:
    """ShareGPT's `conversations`: a list of {"from": human|gpt|system, "value"}."""
    return [*_system(row), *listed_turns(row, "conversations")]


def prompt_completion(row: RawRow) -> list[Message]:
    """A `prompt` and its `completion`: two texts, or two lists of {"role", "content"}."""
    if isinstance(row.get("prompt"), list):
        return [*listed_turns(row, "prompt"), *listed_turns(row, "completion")]
    return [*_system(row), *exchange(_text(row, "prompt"), _text(row, *COMPLETION_NAMES))]


SHAPES: dict[str, Callable[[RawRow], list[Message]]] = bind("shapes", globals())
# What a user may map columns to, shape by shape: the required ones, which suggestions name.
COLUMNS: dict[str, list[str]] = facts("shapes", "columns")


_SPELLINGS = {
    "instruction": INSTRUCTION_NAMES,
    "input": INPUT_NAMES,
    "output": OUTPUT_NAMES,
    "question": QUESTION_NAMES,
    "answer": ANSWER_NAMES,
    "context": CONTEXT_NAMES,
    "completion": COMPLETION_NAMES,
}
# Shape -> what it reads, each under all of its names.
ROW_PARTS: dict[str, list[tuple[str, ...]]] = {
    name: [_SPELLINGS.get(part, (part,)) for part in parts]
    for name, parts in facts("shapes", "reads").items()
}
_TOLD = ("id", "source", "references", "extract", "instruction", "input", "output")


def unused(name: str, row: RawRow, group_column: str) -> Iterator[tuple[str, int]]:
    """(column, length of its text) of what a row of this shape holds and nothing reads."""
    used = {group_column}
    for names in ROW_PARTS[name]:
        used.add(next((one for one in names if row.get(one) not in (None, "")), ""))
    if isinstance(row.get("source"), Mapping):  # prepared before: its other columns are kept
        used.update(_TOLD)
    for column, value in row.items():
        if column not in used and value not in (None, "", [], {}):
            yield str(column), len(str(value))


def has_parts(name: str, columns: Sequence[str]) -> bool:
    """Whether there is a column for each part that this shape cannot do without."""
    needed = [names for names in ROW_PARTS[name] if set(names) & set(COLUMNS[name])]
    return all(any(one in columns for one in names) for names in needed)


def require_one_answer(name: str, rows: Sequence[RawRow], several: str) -> None:
    """SettingsError where every list of answers has two: accepted ones, or a preferred and a
    rejected one? Only the user knows; the rejected one must not count as right."""
    lists = []
    for row in rows:
        if not isinstance(row.get("input"), list):  # else they are a conversation's two sides
            lists += [row[column] for column in _ANSWERS if isinstance(row.get(column), list)]
    pairs = lists and all(len(one) == 2 and _texts(one) for one in lists)
    if several == "ask" and pairs and len(lists) > 1:
        raise SettingsError(
            f"{name}: every row has a list of two answers",
            "they may both be right, or the second may be the rejected one of a preference",
            "say it: --several-answers accepted, or --several-answers first",
        )


def detect(rows: Sequence[RawRow]) -> str | None:
    """The shape most of `rows` have, the first in `SHAPES` on a tie; None if no row fits any."""
    fitting = {name: sum(has_columns(name, row) for row in rows) for name in SHAPES}
    best = max(fitting, key=fitting.__getitem__)
    return best if fitting[best] else None


def has_columns(name: str, row: RawRow) -> bool:
    """Whether the row has what this shape needs; turns in a wrong order are cleaning's matter."""
    try:
        return bool(SHAPES[name](row))
    except BadRow:
        return False


def _with(question: str, about: str) -> str:
    return f"{question}\n\n{about}" if about else question


def _text(row: RawRow, *names: str, required: bool = True) -> str:
    """The trimmed text of the first of `names` that the row has; numbers count as text."""
    name = next((name for name in names if row.get(name) not in (None, "")), None)
    name = name or next((name for name in names if row.get(name) is not None), None)
    if name is None:
        if required:
            raise BadRow(f'no "{names[0]}"')
        return ""
    text = as_text(row[name], name)
    if required and not text:
        raise BadRow(f'empty "{name}"')
    return text


def _system(row: RawRow) -> list[Message]:
    text = _text(row, "system", required=False)
    return [turn("system", text)] if text else []


def _history(row: RawRow) -> list[Message]:
    history = row.get("history") or []
    try:
        pairs = [dict(zip(("user", "assistant"), pair, strict=True)) for pair in history]
    except (TypeError, ValueError) as error:
        raise BadRow('"history" is no list of [user, answer] pairs') from error
    return [turn(role, text) for pair in pairs for role, text in pair.items()]


def _two_sides(row: RawRow) -> list[Message]:
    asked, answered = row["input"], row["output"]
    if len(asked) != len(answered) or not asked:
        raise BadRow(f'{len(asked)} texts in "input", {len(answered)} in "output"')
    turns = [one for pair in zip(asked, answered, strict=True) for one in exchange(*pair)]
    if instruction := _text(row, "instruction", required=False):
        turns[0] = turn("user", f"{instruction}\n\n{turns[0]['content']}")
    return [*_system(row), *_history(row), *turns]


_ANSWERS = tuple(dict.fromkeys((*OUTPUT_NAMES, *ANSWER_NAMES, *COMPLETION_NAMES)))
KNOWN = tuple(
    dict.fromkeys(name for parts in ROW_PARTS.values() for names in parts for name in names)
) + ("instances",)


def unfolded(row: RawRow, several: str = "accepted") -> Iterator[tuple[RawRow, list[str]]]:
    """The conversations nested in one row, each as a row of its own with its accepted answers.

    `instances` (self-instruct) holds {"input", "output"} pairs: one row for each input. An answer
    that is a list of texts holds several accepted ones: the first is trained on, all are returned.
    """
    for one in _instances(_opened(row)):
        name = next((name for name in _ANSWERS if isinstance(one.get(name), list)), None)
        answers = one[name] if name else []
        if isinstance(one.get("input"), list) or not answers or not _texts(answers):
            yield one, []
        else:
            accepted = list(answers) if len(answers) > 1 and several != "first" else []
            yield {**one, name: answers[0]}, accepted


def _opened(row: RawRow) -> RawRow:
    """The row itself where it lies in another object (`{"qa": {...}}`), SQuAD's answers as a list.

    An object is opened only where the row has nothing else that a shape knows.
    """
    inner = [value for value in row.values() if isinstance(value, Mapping)]
    if len(inner) == 1 and not any(name in KNOWN for name in row):
        rest = {name: value for name, value in row.items() if value is not inner[0]}
        if any(name in KNOWN for name in inner[0]):
            row = rest | dict(inner[0])
    answers = row.get("answers")
    texts = answers.get("text") if isinstance(answers, Mapping) else None
    if isinstance(texts, list) and _texts(texts):
        row = {**row, "answers": list(dict.fromkeys(texts))}
    return row


def _instances(row: RawRow) -> Iterator[RawRow]:
    instances = row.get("instances")
    if not isinstance(instances, list) or not instances or "output" in row:
        yield row
        return
    answers: dict[str, list[Any]] = {}
    for one in instances:
        if isinstance(one, dict) and isinstance(one.get("input", ""), str):
            answers.setdefault(one.get("input", ""), []).append(one.get("output"))
        else:
            answers.setdefault("", []).append(None)
    rest = {name: value for name, value in row.items() if name != "instances"}
    for asked, given in answers.items():
        yield {**rest, "input": asked, "output": given if len(given) > 1 else given[0]}


def _texts(answers: Sequence[Any]) -> bool:
    return all(isinstance(answer, str) for answer in answers)
