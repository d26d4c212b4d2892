"""A block of raw rows made into lines ready to be written, with the keys to judge them by.

This is the work that several processes share: it needs no row but the one at hand.
"""

import json
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slimtune.config.data import Data
from slimtune.data import blocks, similarity, splits
from slimtune.data.columns import Values, count_value, renamed
from slimtune.data.rows import alpaca_fields, canonical
from slimtune.data.shapes import SHAPES, RawRow, unfolded, unused
from slimtune.data.similarity import keys_of, language
from slimtune.data.turns import (
    PLACEHOLDERS,
    BadRow,
    Message,
    neutralised,
    oddities,
    require_order,
    require_whole,
    trimmed,
    without_special_tokens,
)
from slimtune.data.whole_numbers import Columns, with_integers

_NONE: Columns = frozenset()
TOLD_LANGUAGES = ("zh", "en", "mixed", "other")
_NUMBER = 2**53 - 1  # stands in a line until the row's number in the file is known
_PLACEHOLDER = b'"line": %d' % _NUMBER

_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class ConversionPlan:
    """What a worker must know beside the rows: settings, column names, what each file is like."""

    settings: Data
    system_prompt: str
    mapping: Mapping[str, str]
    shapes: Mapping[str, str]
    whole: Mapping[str, Columns] = field(default_factory=dict)  # columns of integers in each file


@dataclass
class RowColumns:
    """The rows in the order of the input, column by column: 52 bytes a row, whatever its text.

    Signatures are kept of usable rows alone, 128 bytes each, and only where similarity is asked:
    `signatures` of whole conversations, `asked` of their questions.
    """

    usable: array = field(default_factory=lambda: array("B"))  # 0: rejected
    language: array = field(default_factory=lambda: array("B"))  # its place in LANGUAGES
    file: array = field(default_factory=lambda: array("H"))
    row: array = field(default_factory=lambda: array("I"))  # its number in the file
    line: array = field(default_factory=lambda: array("I"))  # where that row starts
    exact: array = field(default_factory=lambda: array("Q"))
    near: array = field(default_factory=lambda: array("Q"))
    question: array = field(default_factory=lambda: array("Q"))
    answer: array = field(default_factory=lambda: array("Q"))
    position: array = field(default_factory=lambda: array("d"))
    signatures: array = field(default_factory=lambda: array("B"))
    asked: array = field(default_factory=lambda: array("B"))

    def extend(self, more: "RowColumns") -> None:
        for name, column in vars(self).items():
            column.extend(getattr(more, name))


@dataclass
class Converted:
    """A block's rows as lines of JSON, their columns, and what was counted on the way."""

    columns: RowColumns = field(default_factory=RowColumns)
    lines: list[bytes] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)
    cleaning: Counter = field(default_factory=Counter)
    unused: Counter = field(default_factory=Counter)  # column -> rows that have something in it
    unused_length: Counter = field(default_factory=Counter)  # column -> characters in all of them
    values: Values = field(default_factory=dict)  # of the columns that nothing reads
    rows: int = 0  # of the file; nested ones make more lines


def convert_block(block: blocks.Block, plan: ConversionPlan) -> Converted:
    """Every row of the block as one line, usable or rejected, in the order of the file."""
    done = Converted()
    for line, row in blocks.parse(block):
        done.rows += 1
        if isinstance(row, blocks.BadLine):
            _reject(done, block, line, row.reason, row.text)
            continue
        nested = -1
        row = with_integers(renamed(row, plan.mapping), plan.whole.get(block.source.name, _NONE))
        for one, references in unfolded(row, plan.settings.several_answers):
            nested += 1
            try:
                _keep(done, block, line, one, references, plan)
            except BadRow as bad:
                _reject(done, block, line, str(bad), row)
        if nested:
            done.cleaning["nested_rows"] += nested
    return done


def _keep(
    done: Converted,
    block: blocks.Block,
    line: int,
    row: RawRow,
    references: list[str],
    plan: ConversionPlan,
) -> None:
    settings, found = plan.settings, []
    shape = plan.shapes[block.source.name]
    _require_told(row)
    messages = SHAPES[shape](row)
    messages = cleaned(messages, settings, found)
    fields = alpaca_fields(row, settings.group_column)
    for column, value in fields.items():
        if isinstance(value, str):
            require_whole(value, column)
    if "special_tokens" in found:
        fields = {k: neutralised(v) if isinstance(v, str) else v for k, v in fields.items()}
        references = [neutralised(reference) for reference in references]
    if plan.system_prompt and messages[0]["role"] != "system":
        messages = [Message(role="system", content=plan.system_prompt), *messages]
    keys = keys_of(messages)
    group = row.get(settings.group_column) if settings.group_column else None
    key = keys.asked if group in (None, "") else f"{settings.group_column}\n{group}".encode()
    done.cleaning.update(found)
    for column, length in unused(shape, row, settings.group_column):
        done.unused[column] += 1
        done.unused_length[column] += length
        count_value(done.values, column, row.get(column, ""))
    if references:
        done.cleaning["several_answers"] += 1
    name = block.source.name
    written = canonical(keys.id, messages, name, _NUMBER, fields, references)
    done.lines.append(_line(written))
    columns = done.columns
    columns.usable.append(1)
    columns.language.append(
        TOLD_LANGUAGES.index(language("\n".join(m["content"] for m in messages)))
    )
    columns.row.append(done.rows)
    columns.line.append(line)
    columns.exact.append(keys.exact)
    columns.near.append(keys.near)
    columns.question.append(keys.question)
    columns.answer.append(keys.answer)
    columns.position.append(splits.position(key, settings.seed))
    if similarity.repeats_from(settings):
        columns.signatures.frombytes(similarity.signature(keys.said))
    if similarity.leaks_from(settings):
        columns.asked.frombytes(similarity.signature([keys.asked]))


def _require_told(row: RawRow) -> None:
    """BadRow where a row offers tools, which no template here writes but answers build on, and
    where it has a preference in place of an answer."""
    if _offers(row.get("tools")) or _offers(row.get("functions")):
        raise BadRow('"tools" stand in the row, which no template writes')
    # "Chosen" is text in Alpaca's rows and a turn in ShareGPT's, whose question it follows.
    if row.get("chosen") and row.get("rejected") and not row.get("output"):
        raise BadRow('"chosen" and "rejected" are a preference; here rows have one answer')


def _offers(tools: object) -> bool:
    """LLaMA-Factory writes an empty list of tools as text."""
    return bool(tools) and not (isinstance(tools, str) and tools.strip() in ("", "[]", "{}"))


def _require_answers(messages: list[Message], settings: Data, found: list[str]) -> None:
    """BadRow unless something is said in each answer, and one of them is to be learned."""
    answers = [one for one in messages if one["role"] == "assistant"]
    if all(one.get("weight") == 0 for one in answers):
        raise BadRow("every answer has weight 0: nothing is to be learned")
    hollow = next((one["content"] for one in answers if one["content"] in PLACEHOLDERS), None)
    if hollow is None:
        return
    if settings.placeholders == "reject":
        raise BadRow(f"the answer is only {hollow!r}: what stands for no value")
    found.append("placeholder_answers")


def cleaned(messages: list[Message], settings: Data, found: list[str]) -> list[Message]:
    """The conversation after every step that is switched on; `found` gets those that mattered."""
    if settings.trim_turns:
        whole = trimmed(messages)
        if len(whole) != len(messages):
            found.append("trimmed_turns")
        messages = whole or messages
    require_order(messages)
    _require_answers(messages, settings, found)
    if settings.neutralise_special_tokens:
        harmless = without_special_tokens(messages)
        if harmless != messages:
            found.append("special_tokens")
        messages = harmless
    if settings.inspect_texts:
        found += oddities(messages)
    return messages


def _reject(done: Converted, block: blocks.Block, line: int, reason: str, row: Any) -> None:
    done.reasons[reason] += 1
    done.lines.append(_line(set_aside(block.source.name, line, "rejected", reason, row)))
    for name, column in vars(done.columns).items():
        if name not in ("file", "signatures", "asked"):
            column.append({"row": done.rows, "line": line}.get(name, 0))


def set_aside(name: str, line: int, kind: str, reason: str, row: Any) -> dict[str, Any]:
    """What rejected.jsonl says of a row; here the line is the one where it starts in its file."""
    return {"file": name, "line": line, "kind": kind, "reason": reason, "row": row}


def _line(value: Mapping[str, Any]) -> bytes:
    # A lone surrogate in a rejected row comes out as the JSON escape it came in as.
    return _encode(value).encode("utf-8", "backslashreplace") + b"\n"


def numbered_rows(line: bytes, number: int) -> bytes:
    """The line with the row's number in the file, which no worker can know."""
    return line.replace(_PLACEHOLDER, b'"line": %d' % number, 1)
