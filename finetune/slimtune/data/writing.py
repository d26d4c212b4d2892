"""The second pass: every line of the spool goes where its fate sends it, and is counted."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from slimtune.config.training import LEAST_TO_CHOOSE
from slimtune.data import judging
from slimtune.data.account import BATCH_SIZE, SPLITS, Account, Fit, TokenSize, report_numbers
from slimtune.data.cleaning import TOLD_LANGUAGES, set_aside
from slimtune.data.examples import Examples
from slimtune.data.leakage import Asked, Leakage
from slimtune.data.preparation import Prepared
from slimtune.data.rows import written_system
from slimtune.data.workers import spread
from slimtune.errors import InputError
from slimtune.report import data_report

UNLEARNED = -100  # the label of a token that is not learned
_BATCH = 200  # rows that travel to a worker together
_PIECES_LACK = ("instruction", "input", "output", "references")  # true of the whole row only
_FEW = "its share is {test_by_share}, too few to tell anything; --test-rows gives another number"
_CHANCE = "chance moves a score on so few by ±{test_chance:.0f} points; more: --test-rows"
_FEW_CHOOSE = "too few to choose the best checkpoint by; more: --validation-rows"
_BYTES = "this tokenizer cuts Chinese into bytes; a base made for Chinese is faster and learns more"
_TOLD_ALIKE = 0.1  # of the test questions; fewer are for the report alone
_LEAK = "its question is also in a split kept for judging"


@dataclass
class WrittenRows:
    """One kept row after the length limit: its lines with their sizes, or why there are none."""

    lines: list[bytes]
    sizes: list[TokenSize] = field(default_factory=list)
    how: str = ""
    reason: str = ""
    twins: list[int] = field(default_factory=list)  # the test questions that it is like
    answers: Counter = field(default_factory=Counter)  # their "tokens" and "characters"


def output_names(name: str) -> dict[str, str]:
    """The files of an output beside its splits. The default output has them under plain names;
    any other bears its own name, so that several can share a folder.
    """
    prefix = data_report.prefix(name)
    return {
        "report": f"{prefix}{data_report.MARKDOWN}",
        "rejected": f"{prefix}{data_report.REJECTED}",
    }


def output_files(name: str) -> list[str]:
    """All names of an output: its splits, training rows first, the report's files, the rejected."""
    prefix = data_report.prefix(name)
    splits = [f"{name}_{split}.jsonl" for split in SPLITS]
    beside = (*data_report.REPORT_FILES, data_report.REJECTED)
    return splits + [f"{prefix}{file}" for file in beside]


def write_outputs(
    prepared: Prepared,
    folder: Path,
    name: str,
    fit: Fit | None = None,
    batch_size: int = BATCH_SIZE,
    language: str = "en",
) -> dict[str, Any]:
    """Write NAME_{split}.jsonl, the rejected rows and the report; returns the report's numbers.

    `fit` (a tokenizer, a template and a policy in one call) counts tokens and shortens long rows.
    `batch_size` is the one that padding is counted for, `language` that of the report's words.
    A split without rows gets no file. Raises InputError where `fit` refuses a row or leaves none
    to train on.
    """
    account = Account(sources=prepared.sources, cleaning=prepared.cleaning, unused=prepared.unused)
    account.test_by_share = prepared.judged.test_by_share
    leakage, examples = Leakage(prepared), Examples(prepared, fit)
    account.reasons["rejected"] = prepared.reasons
    with ExitStack() as stack:
        out = _Files(folder, name, stack)
        for place, line, written in _fitted(prepared, fit, leakage):
            if written is None or written.reason:
                _put_aside(place, line, written, prepared, out, account)
            else:
                leakage.meet(written.twins)
                examples.take(place, written.lines[0])
                _put(place, written, prepared, out, account)
    if not account.splits["train"]:
        raise InputError(
            f"{prepared.settings.input}: no row left to train on",
            f"{account.reasons['too_long'].total()} rows are longer than the limit",
            "raise --max-length (or, if --long-rows is drop, choose truncate_prompt)",
        )
    _require_short(account, prepared)
    account.leakage = leakage.numbers()
    numbers = report_numbers(account, batch_size)
    data_report.write_data_report(numbers, folder, name, language, examples.rows)
    return numbers | {"system_prompt": written_system(folder / output_files(name)[0])}


def closing_numbers(numbers: Mapping[str, Any], name: str, max_length: int) -> dict[str, Any]:
    """What a preparation says at its end: splits, what was left out, what was not used."""
    left_out = str(numbers["rows_in"] - numbers["kept"])
    if numbers["too_long"]:
        left_out += f", of them {numbers['too_long']} too long for --max-length {max_length}"
    told = numbers["splits"] | {f"left out (see {output_names(name)['rejected']})": left_out}
    if "test_by_share" in numbers:
        told["test"] = f"{told['test']} ({_FEW.format(**numbers)})"
    if "test_chance" in numbers:
        told["test"] = f"{told['test']} ({_CHANCE.format(**numbers)})"
    if 0 < numbers["splits"]["validation"] < LEAST_TO_CHOOSE:
        told["validation"] = f"{told['validation']} ({_FEW_CHOOSE})"
    weighted = [one for one in numbers["sources"] if "weight" in one]
    if weighted:
        told["mixed for training"] = ", ".join(
            f"{one['file']} × {one['weight']}: {one['train_rows']}" for one in weighted
        )
    told |= _alike(numbers.get("leakage"))
    each = numbers.get("tokens", {}).get("per_chinese_character", 0)
    if each > data_report.MOST_PER_CHARACTER:
        told["tokens a Chinese character"] = f"{each:.1f} ({_BYTES})"
    unused = [
        f"{column} ({one['filled']:.0%} filled, {one['characters']} characters)"
        for column, one in numbers["unused_columns"].items()
    ]
    if unused:
        told["columns not used"] = ", ".join(unused)
    shortened = {f"long rows {how}": rows for how, rows in numbers["long_rows"].items()}
    shortened.pop("long rows whole", None)
    return told | shortened


def _alike(leakage: Mapping[str, Any] | None) -> dict[str, str]:
    """A word where the test is much like training; the data report tells it always."""
    if not leakage or leakage["questions_alike"] < _TOLD_ALIKE * leakage["questions_compared"]:
        return {}
    share = leakage["questions_alike"] / leakage["questions_compared"]
    cure = f"--leak-similarity {leakage['similarity']:g} takes those out"
    return {"test questions much like a training one": f"{share:.0%} ({cure})"}


def _require_short(account: Account, prepared: Prepared) -> None:
    """InputError where rows that are too long, with the rejected ones, are more than allowed."""
    too_long, rejected = (account.reasons[kind].total() for kind in ("too_long", "rejected"))
    limit, rows = prepared.settings.max_bad_rows, account.rows_in
    allowed = limit if limit >= 1 else limit * rows
    if too_long and too_long + rejected > allowed:
        raise InputError(
            f"{prepared.settings.input}: {too_long} of {rows} rows are longer than --max-length",
            f"--max-bad-rows allows {allowed:.0f} rows to be left out ({rejected} others are)",
            "raise --max-length, choose a model whose tokenizer needs fewer tokens for this "
            "language, or raise --max-bad-rows",
        )


class _Files:
    """The output's files, opened when their first line comes."""

    def __init__(self, folder: Path, name: str, stack: ExitStack) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self._stack = folder, name, stack
        self._open: dict[str, BinaryIO] = {}
        self.rejected = stack.enter_context((folder / output_names(name)["rejected"]).open("wb"))

    def of(self, split: str) -> BinaryIO:
        if split not in self._open:
            file = self._folder / f"{self._name}_{split}.jsonl"
            self._open[split] = self._stack.enter_context(file.open("wb"))
        return self._open[split]


def _put(
    place: int, written: WrittenRows, prepared: Prepared, out: _Files, account: Account
) -> None:
    split = SPLITS[prepared.judged.split[place]]
    copies = int(prepared.judged.copies[place]) if split == "train" else 1
    out.of(split).writelines(written.lines * copies)
    language = TOLD_LANGUAGES[prepared.columns.language[place]]
    account.keep(split, language, written.sizes, written.how, copies)
    if language == "zh":
        account.chinese.update(written.answers)
    source = account.sources[prepared.columns.file[place]]
    if split == "train" and "train_rows" in source:
        source["train_rows"] += copies


def _put_aside(
    place: int,
    line: bytes,
    written: WrittenRows | None,
    prepared: Prepared,
    out: _Files,
    account: Account,
) -> None:
    kind = "too_long" if written else judging.FATES[prepared.judged.kind[place]]
    columns = prepared.columns
    first = int(prepared.judged.first[place])
    if kind == "rejected":  # its line says all, and its reason is counted
        out.rejected.write(line)
        return
    if kind == "too_long":
        account.set_aside(kind, "too long")
        reason = written.reason
    elif kind == "leak":
        account.set_aside(kind, _LEAK)
        reason = _LEAK if first == place else _like(first, place, prepared)
    elif kind == "not_drawn":
        account.set_aside(kind, kind)
        reason = f"not drawn: its file has weight {prepared.sources[columns.file[place]]['weight']}"
    else:
        account.set_aside(kind, kind)
        reason = _like(first, place, prepared)
    row = json.loads(line)
    entry = set_aside(row["source"]["file"], columns.line[place], kind, reason, row)
    out.rejected.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")


def _like(first: int, place: int, prepared: Prepared) -> str:
    columns = prepared.columns
    where = f"line {columns.line[first]}"
    if columns.file[first] != columns.file[place]:
        where += f" of {prepared.sources[columns.file[first]]['file']}"
    alike = prepared.judged.similarity
    if len(alike) and alike[place]:
        split = SPLITS[prepared.judged.split[first]]
        kept = "" if split == SPLITS[prepared.judged.split[place]] else f" in the {split} split"
        return f"near {where}{kept}, similarity {alike[place]:.2f}"
    return f"same as {where}"


def _fitted(
    prepared: Prepared, fit: Fit | None, leakage: Leakage
) -> Iterator[tuple[int, bytes, WrittenRows | None]]:
    """Every line in order, with what `fit` made of it; None where the row is not kept."""
    kind, state = prepared.judged.kind, (fit, leakage.asked)
    lines = (
        (place, line, not kind[place], leakage.compares(place)) for place, line in prepared.lines()
    )
    batches = iter(lambda: list(islice(lines, _BATCH)), [])
    # Without a tokenizer the way to a worker costs more than the work.
    workers = 1 if fit is None else prepared.workers
    for batch in spread(_fit_batch, batches, state, workers):
        yield from batch


def _fit_batch(
    batch: list[tuple[int, bytes, bool, bool]], state: tuple[Fit | None, Asked]
) -> list[tuple[int, bytes, WrittenRows | None]]:
    fit, asked = state
    done = []
    for place, line, kept, compared in batch:
        row = json.loads(line) if compared or (kept and fit) else {}
        written = None
        if kept:
            written = _fit(row, line, fit) if fit else WrittenRows([line])
        if compared:
            written.twins = asked.twins(row["messages"])
        done.append((place, line, written))
    return done


def _fit(row: dict[str, Any], line: bytes, fit: Fit) -> WrittenRows:
    source = row["source"]
    fitted = fit(row["messages"], place=f"{source['file']}, row {source['line']}")
    if fitted.how == "dropped":
        return WrittenRows([], reason=fitted.reason)
    sizes = [
        TokenSize(len(one["input_ids"]), sum(label != UNLEARNED for label in one["labels"]))
        for one in fitted.encoded
    ]
    if fitted.how == "whole":
        return WrittenRows([line], sizes, fitted.how, answers=_answers(row["messages"], sizes))
    parts = [_piece(row, messages, number) for number, messages in enumerate(fitted.conversations)]
    if len(parts) == 1:
        parts = [row | {"messages": fitted.conversations[0]}]
    lines = [json.dumps(part, ensure_ascii=False).encode() + b"\n" for part in parts]
    return WrittenRows(lines, sizes, fitted.how)


def _answers(messages: list[dict[str, Any]], sizes: list[TokenSize]) -> Counter:
    """The answers that are learned: their characters, and their tokens without the end tokens."""
    said = [m["content"] for m in messages if m["role"] == "assistant" and m.get("weight") != 0]
    tokens = sum(size.supervised for size in sizes) - len(said)
    return Counter(tokens=tokens, characters=sum(map(len, said)))


def _piece(row: dict[str, Any], messages: list[dict[str, str]], number: int) -> dict[str, Any]:
    rest = {name: value for name, value in row.items() if name not in _PIECES_LACK}
    return rest | {"id": f"{row['id']}-{number + 1}", "messages": messages}
