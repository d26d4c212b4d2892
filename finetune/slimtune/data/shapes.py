"""The shapes that rows come in: Alpaca, messages, question and answer, and so on.

A new shape is one function here and one entry of config/catalogues.yaml. A file's columns are taken
under the names that the shapes know; where none fits, the closest are suggested.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from slimtune.config.catalogues import bind, facts
from slimtune.console import SettingsError
from slimtune.data.turns import BadRow, Message, as_text, exchange, listed_turns, turn

RawRow = Mapping[str, Any]

QUESTION = ("question", "questions", "query", "问题", "提问")
ANSWER = ("answer", "answers", "response", "回答", "答案")
COMPLETION = ("completion", "response")


def alpaca(row: RawRow) -> list[Message]:
    """`instruction`, `output`; optional `input`, `system`, `history`: earlier [user, answer].

    Where `input` and `output` are lists, they are the two sides of one conversation.
    """
    if isinstance(row.get("input"), list) and isinstance(row.get("output"), list):
        return _two_sides(row)
    instruction, extra = _text(row, "instruction"), _text(row, "input", required=False)
    question = f"{instruction}\n\n{extra}" if extra else instruction
    return [*_system(row), *_history(row), *exchange(question, _text(row, "output"))]


def qa(row: RawRow) -> list[Message]:
    """A `question` and its `answer`, under the spellings of `QUESTION` and `ANSWER`."""
    question, answer = _text(row, *QUESTION), _text(row, *ANSWER)
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


def _text(row: RawRow, *names: str, required: bool = True) -> str:
    """The trimmed text of the first of `names` that the row has; numbers count as text."""
    name = next((name for name in names if row.get(name) is not None), None)
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


_ANSWERS = ("output", *ANSWER, *COMPLETION)
KNOWN = ("instruction", "input", "output", "system", "history", "prompt", "completion")
KNOWN += ("messages", "conversations", "instances", *QUESTION, *ANSWER)


def parse_mapping(words: str) -> dict[str, str]:
    """{column of the file: name the shapes know} from "question=Questions,answer=Answers"."""
    mapping = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        known, found, column = word.partition("=")
        known = _plain(known)
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


def unfolded(row: RawRow) -> Iterator[tuple[RawRow, list[str]]]:
    """The conversations nested in one row, each as a row of its own with its accepted answers.

    `instances` (self-instruct) holds {"input", "output"} pairs: one row for each input. An answer
    that is a list of texts holds several accepted ones: the first is trained on, all are returned.
    """
    for one in _instances(row):
        name = next((name for name in _ANSWERS if isinstance(one.get(name), list)), None)
        answers = one[name] if name else []
        if isinstance(one.get("input"), list) or not answers or not _texts(answers):
            yield one, []
        else:
            yield {**one, name: answers[0]}, list(answers) if len(answers) > 1 else []


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


def suggestion(found: Sequence[str], shapes: Sequence[str]) -> str:
    """The flag that would make the file readable, from its own columns that sound alike."""
    best: tuple[float, str] = (0.0, "")
    for shape in shapes:
        wanted = COLUMNS[shape]
        pairs = [_closest(name, found) for name in wanted]
        score = min(score for score, _ in pairs)
        if score > best[0] and len({column for _, column in pairs}) == len(wanted):
            words = (f"{name}={column}" for name, (_, column) in zip(wanted, pairs, strict=True))
            best = (score, "--columns " + ",".join(words))
    if best[0] >= 0.5:
        return f"did you mean {best[1]}?"
    first, second, *_ = [*found, "FIRST", "SECOND"]
    return f"name the columns, for instance --columns question={first},answer={second}"


def _closest(name: str, found: Sequence[str]) -> tuple[float, str]:
    def likeness(column: str) -> float:
        plain = _plain(column).replace(" ", "_")
        whole = difflib.SequenceMatcher(None, name, plain).ratio()
        return max(whole, 0.9 if name in plain.split("_") else 0.0)

    return max(((likeness(column), column) for column in found), default=(0.0, ""))
