"""A file such as people bring, with faults planted on purpose and counted as they are planted.

OpenAI messages, one a line, their column under several spellings. Each fault stands on a row of its
own, so the report of prepare_data must find exactly the numbers told here.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slimtune.config.data import Data
from slimtune.data import splits
from slimtune.data.similarity import skeleton
from slimtune.sample.kinds import SampleRow, question, write_lines

_MOST_ROWS = 400
_EACH = 4  # rows of each fault
_HEADERS = ("messages", "Messages", " MESSAGES ")
_WIDE = {ord(char): ord(char) + 0xFEE0 for char in "0123456789,?"}

Line = dict[str, object]


def write_messy(file: Path, rows: list[SampleRow], settings: Data, seed: int) -> dict[str, int]:
    """Write the file; what prepare_data's report must say of it, by the report's own names.

    Leaks need a test split and rows that stay together by `fact`, as the default settings have it.
    """
    draw = random.Random(seed)
    base = _far_apart(rows)[:_MOST_ROWS]
    clean = [_line(row, draw) for row in base]
    added: list[str] = []
    planted = {"rejected": 0}
    for fault in (*_REJECTED, *_REPEATED, *_ODD):
        chosen = draw.sample(base, min(_EACH, len(base)))
        lines = [fault(_line(row, draw), number) for number, row in enumerate(chosen)]
        if fault in _ODD:  # a row of its own, not a second one
            lines = [
                _asked_anew(line, f"{_ODD[fault]} {number}") for number, line in enumerate(lines)
            ]
        added += [line if isinstance(line, str) else _text(line) for line in lines]
        name = _ODD.get(fault) or _REPEATED.get(fault, "rejected")
        planted[name] = planted.get(name, 0) + len(lines)
    leaks = _leaks(base, settings, draw)
    planted["leaks"] = len(leaks)
    lines = [*map(_text, clean[1:]), *added, *map(_text, leaks)]
    draw.shuffle(lines)
    write_lines(file, [_text(clean[0]), *lines])
    return {"rows_in": len(lines) + 1, **planted}


def _far_apart(rows: list[SampleRow]) -> list[SampleRow]:
    """The rows whose question no row before them asks but for case, width and punctuation."""
    return list({skeleton(question(row)): row for row in reversed(rows)}.values())[::-1]


def _line(row: SampleRow, draw: random.Random) -> Line:
    turns = [
        {"role": "user", "content": question(row)},
        {"role": "assistant", "content": row["output"]},
    ]
    return {draw.choice(_HEADERS): turns, "fact": row["fact"]}


def _turns(line: Line) -> list[dict]:
    return next(value for value in line.values() if isinstance(value, list))


def _text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False)


def _asked_anew(line: Line, mark: str) -> Line:
    user = _turns(line)[0]
    user["content"] = f"({mark}) {user['content']}"
    return line


def _broken_line(line: Line, number: int) -> str:
    text = _text(line)
    return text[: len(text) // 2 + number]


def _unknown_role(line: Line, number: int) -> Line:
    _turns(line)[1]["role"] = ("narrator", "Erzähler", "旁白", "")[number % 4]
    return line


def _two_questions_in_a_row(line: Line, number: int) -> Line:
    _turns(line).insert(0, {"role": "user", "content": f"Hello? ({number})"})
    return line


def _empty_answer(line: Line, number: int) -> Line:
    _turns(line)[1]["content"] = " \n"[number % 2 :]
    return line


def _answer_that_is_no_text(line: Line, number: int) -> Line:
    _turns(line)[1]["content"] = ({"text": "4"}, None, [{"type": "image"}], [4])[number % 4]
    return line


def _same_again(line: Line, number: int) -> Line:
    return line


def _same_but_for_case_and_width(line: Line, number: int) -> Line:
    for turn in _turns(line):
        turn["content"] = "  " + turn["content"].upper().translate(_WIDE).replace(" ", "  ") + "!"
    return line


def _special_token(line: Line, number: int) -> Line:
    _turns(line)[1]["content"] += (" </s>", " [/INST] <s>", " <|im_end|>", " <<SYS>>")[number % 4]
    return line


def _html_entity(line: Line, number: int) -> Line:
    _turns(line)[0]["content"] += (" &lt;b&gt;", " &amp;", "&nbsp;", " &#39;")[number % 4]
    return line


def _mojibake(line: Line, number: int) -> Line:
    broken = ("Café, naïve", "“quoted”", "你好，世界", "it’s")[number % 4]
    _turns(line)[0]["content"] += " " + broken.encode("utf-8").decode("cp1252", "replace")
    return line


_Fault = Callable[[Line, int], Line | str]
_REJECTED: tuple[_Fault, ...] = (
    _broken_line,
    _unknown_role,
    _two_questions_in_a_row,
    _empty_answer,
    _answer_that_is_no_text,
)
_REPEATED: dict[_Fault, str] = {
    _same_again: "duplicates",
    _same_but_for_case_and_width: "near_duplicates",
}
_ODD: dict[_Fault, str] = {
    _special_token: "special_tokens",
    _html_entity: "html_entities",
    _mojibake: "mojibake",
}


def _leaks(base: list[SampleRow], settings: Data, draw: random.Random) -> list[Line]:
    """Questions of the test split asked again under another fact, which puts them into training."""
    if settings.group_column != "fact":
        return []
    tested = [row for row in base if _split(row["fact"], settings) == splits.TEST][:_EACH]
    return [_leak(row, settings, draw) for row in tested]


def _leak(row: SampleRow, settings: Data, draw: random.Random) -> Line:
    other = next(
        name
        for name in (f"{row['fact']} again {number}" for number in range(1000))
        if _split(name, settings) == splits.TRAIN
    )
    return _line(row | {"fact": other, "output": f"{row['output']} (so it is said)"}, draw)


def _split(fact: str, settings: Data) -> int:
    place = splits.position(f"fact\n{fact}".encode(), settings.seed)
    return int(splits.assign(np.array([place]), splits.split_bounds(settings))[0])
