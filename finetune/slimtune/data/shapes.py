"""The shapes that rows come in: Alpaca, messages, question and answer, and so on.

A new shape is one function here and one entry of config/catalogues.yaml. A file's columns are taken
under the names that the shapes know; where none fits, the closest are suggested.
"""

import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from slimtune.config.catalogues import bind, facts
from slimtune.console import SettingsError
from slimtune.data.turns import BadRow, Message, as_text, exchange, listed_turns, turn

RawRow = Mapping[str, Any]

_BETWEEN = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # commas outside quotes
_NUMBER = re.compile(r"[-+\d.,:/ %$€¥年月日]+")  # dates and amounts too

# Names of one and the same column, the most usual first: a row's first that is not empty counts.
INSTRUCTION = ("instruction", "指令")
INPUT = ("input", "context", "passage", "background", "输入", "上下文", "背景", "材料")
OUTPUT = ("output", "response", "target", "输出", "回复")
QUESTION = ("question", "questions", "query", "问题", "提问", "问", "标准问", "客户提问", "input")
ANSWER = (
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
CONTEXT = ("context", "passage", "background", "上下文", "背景", "材料")
COMPLETION = ("completion", "response")


def alpaca(row: RawRow) -> list[Message]:
    """`instruction`, `output`; optional `input`, `system`, `history`: earlier [user, answer].

    What the instruction is about may be called `context` (Dolly). Where `input` and `output` are
    lists, they are the two sides of one conversation.
    """
    if isinstance(row.get("input"), list) and isinstance(row.get("output"), list):
        return _two_sides(row)
    question = _with(_text(row, *INSTRUCTION), _text(row, *INPUT, required=False))
    return [*_system(row), *_history(row), *exchange(question, _text(row, *OUTPUT))]


def qa(row: RawRow) -> list[Message]:
    """A `question` and its `answer`, under the spellings of `QUESTION` and `ANSWER`.

    A passage that the question is about (`CONTEXT`) follows it, as Alpaca's input does: without it
    the model would learn to answer from nothing.
    """
    # Beside an instruction, an input is what that is about; alone (Firefly) it is what is asked.
    names = QUESTION[:-1] if "instruction" in row else QUESTION
    question = _with(_text(row, *names), _text(row, *CONTEXT, required=False))
    answer = _text(row, *ANSWER)
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
    return [*_system(row), *exchange(_text(row, "prompt"), _text(row, *COMPLETION))]


SHAPES: dict[str, Callable[[RawRow], list[Message]]] = bind("shapes", globals())
# What a user may map columns to, shape by shape: the required ones, which suggestions name.
COLUMNS: dict[str, list[str]] = facts("shapes", "columns")


_SPELLINGS = {
    "instruction": INSTRUCTION,
    "input": INPUT,
    "output": OUTPUT,
    "question": QUESTION,
    "answer": ANSWER,
    "context": CONTEXT,
    "completion": COMPLETION,
}
# Shape -> what it reads, each under all of its names.
PARTS: dict[str, list[tuple[str, ...]]] = {
    name: [_SPELLINGS.get(part, (part,)) for part in parts]
    for name, parts in facts("shapes", "reads").items()
}
_TOLD = ("id", "source", "references", "extract", "instruction", "input", "output")


def unused(name: str, row: RawRow, group_column: str) -> Iterator[tuple[str, int]]:
    """(column, length of its text) of what a row of this shape holds and nothing reads."""
    used = {group_column}
    for names in PARTS[name]:
        used.add(next((one for one in names if row.get(one) not in (None, "")), ""))
    if isinstance(row.get("source"), Mapping):  # prepared before: its other columns are kept
        used.update(_TOLD)
    for column, value in row.items():
        if column not in used and value not in (None, "", [], {}):
            yield str(column), len(str(value))


def has_parts(name: str, columns: Sequence[str]) -> bool:
    """Whether there is a column for each part that this shape cannot do without."""
    needed = [names for names in PARTS[name] if set(names) & set(COLUMNS[name])]
    return all(any(one in columns for one in names) for names in needed)


def require_columns(mapping: Mapping[str, str], heads: Mapping[str, Sequence[RawRow]]) -> None:
    """SettingsError for a column of --columns that no file has; `heads` are their first rows."""
    found = dict.fromkeys(name for rows in heads.values() for name in found_in(rows))
    plain = {_plain(name) for name in found}
    for column, known in mapping.items():
        if column not in plain:
            near = difflib.get_close_matches(column, plain, n=1)
            raise SettingsError(
                f"data.columns: {known}={column}: no such column",
                f"found are {', '.join(found) or 'none'}",
                f"did you mean {near[0]}?" if near else "name one of them",
            )


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


_ANSWERS = tuple(dict.fromkeys((*OUTPUT, *ANSWER, *COMPLETION)))
KNOWN = tuple(
    dict.fromkeys(name for parts in PARTS.values() for names in parts for name in names)
) + ("instances",)


def parse_mapping(words: str) -> dict[str, str]:
    """{column of the file: name the shapes know} from "question=Questions,answer=Answers".

    A column with a comma in its name stands in double quotes: `question="ask, please"`.
    """
    mapping = {}
    for word in filter(None, (word.strip() for word in _BETWEEN.split(words))):
        known, found, column = word.partition("=")
        known, column = _plain(known), column.strip()
        if len(column) > 1 and column[0] == column[-1] == '"':
            column = column[1:-1]
        if not found or not column.strip() or known not in KNOWN:
            near = difflib.get_close_matches(known, KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KNOWN)}"
            raise SettingsError(
                f"columns: {word!r} is no name=column",
                f"the name must be one that a row's shape uses; {hint}",
                "for instance --columns question=Questions,answer=Answers",
            )
        mapping[_plain(column)] = known
    return mapping


def renamed(row: RawRow, mapping: Mapping[str, str]) -> RawRow:
    """The row with forgiven headers (case, spaces) and mapped columns under their known names."""
    columns = tuple(row)
    names = _names(columns, tuple(mapping.items()))
    return row if names == columns else dict(zip(names, row.values(), strict=True))


@lru_cache(maxsize=256)
def _names(columns: tuple[str, ...], mapping: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """A column mapped by the user wins, then one spelled exactly, then one that is forgiven."""
    mapped = dict(mapping)
    taken = {mapped[_plain(column)] for column in columns if _plain(column) in mapped}
    taken |= {column for column in columns if column in KNOWN}
    names: list[str] = []
    for column in columns:
        plain = _plain(column)
        forgiven = plain if plain in KNOWN and plain not in taken else column
        name = mapped.get(plain, forgiven)
        names.append(column if name in names else name)
    return tuple(names)


def _plain(column: Any) -> str:
    return " ".join(str(column).split()).lower()


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
    if isinstance(answers, Mapping) and isinstance(answers.get("text"), list):
        row = {**row, "answers": list(dict.fromkeys(answers["text"]))}
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


def found_in(rows: Iterable[RawRow]) -> list[str]:
    """The column names of `rows`, in the order they first appear."""
    return list(dict.fromkeys(str(key) for row in rows for key in row))


# What people call the two columns that matter, in the order in which to believe it.
_ASKED = (
    "question",
    "prompt",
    "query",
    "instruction",
    "问题",
    "提问",
    "客户提问",
    "标准问",
    "指令",
)
_ASKED += ("问", "input", "text", "user", "request", "title")
_REPLIED = ("answer", "reply", "response", "output", "target", "completion", "答案", "回答")
_REPLIED += ("标准答", "回复", "答", "输出", "label", "category", "assistant")


def suggestion(rows: Sequence[RawRow]) -> str:
    """The flag that makes the file readable, tried on `rows` and found to fit; else what lacks.

    Names count first, then the texts themselves: the question stands before the answer. A column
    of numbers is neither.
    """
    texts = [name for name in found_in(rows) if _is_text(name, rows)]
    if len(texts) < 2:
        have = f"only {texts[0]!r} holds text" if texts else "no column holds text"
        return f"a row needs a question and an answer, and {have}: give a file that has both"
    asked, replied = _named_like(_ASKED, texts), _named_like(_REPLIED, texts)
    rest = [name for name in texts if name not in (asked, replied)]
    asked = asked or rest.pop(0)
    replied = replied or (rest[-1] if rest else "")
    mapping = {_plain(asked): "question", _plain(replied): "answer"}
    fitting = sum(has_columns("qa", renamed(row, mapping)) for row in rows)
    words = f"question={_quoted(asked)},answer={_quoted(replied)}"
    if not replied or 2 * fitting < len(rows):
        return f"name the columns that hold question and answer: {', '.join(texts)}"
    return f"did you mean --columns {shlex.quote(words)}?"


def _is_text(column: str, rows: Sequence[RawRow]) -> bool:
    values = [row[column] for row in rows if row.get(column) not in (None, "")]
    texts = [value for value in values if isinstance(value, str) and not _NUMBER.fullmatch(value)]
    return 2 * len(texts) > len(values)


def _named_like(names: Sequence[str], columns: Sequence[str]) -> str:
    """The column with the first of `names` in its own: as a whole, as a word, or within Chinese."""
    for name in names:
        for column in columns:
            plain = _plain(column)
            words = re.split(r"[^a-z]+", plain)
            if plain == name or name in words or f"{name}s" in words:
                return column
            if not name.isascii() and name in plain:
                return column
    return ""


def _quoted(column: str) -> str:
    return f'"{column}"' if "," in column or '"' in column else column
