"""prepare_data.py: every raw row ends in one split or among the rejected, in all formats."""

import csv
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from running import (
    another_run_writing,
    files_under,
    killed,
    leaves_nothing,
    refused,
    run,
    succeeds,
)
from tiny_rows import raw_rows

from slimtune.artifacts import require, sha256
from slimtune.console import runnable
from slimtune.errors import InputError

SPLITS = ("train", "validation", "test")


def write_raw(file: Path, rows: list[dict], encoding: str = "utf-8") -> Path:
    """Rows in the format that the file's ending names."""
    with file.open("w", encoding=encoding, newline="") as stream:
        if file.suffix == ".json":
            json.dump(rows, stream, ensure_ascii=False)
        elif file.suffix == ".jsonl":
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return file


def read(folder: Path, name: str = "train") -> dict[str, list[dict]]:
    """{split: rows} of a prepared folder; a split without rows has no file."""
    files = {split: folder / f"{name}_{split}.jsonl" for split in SPLITS}
    return {
        split: [json.loads(line) for line in file.open()] if file.exists() else []
        for split, file in files.items()
    }


def questions(splits: dict[str, list[dict]]) -> list[str]:
    return [row["messages"][0]["content"] for rows in splits.values() for row in rows]


def test_several_inputs_from_any_folder(tmp_path, monkeypatch, settings) -> None:
    """Paths in a flag are relative to the working directory, each of them."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    write_raw(tmp_path / "a,1.csv", [{"question": f"q{n}", "answer": "a"} for n in range(9)])
    write_raw(tmp_path / "b.jsonl", [{"prompt": f"p{n}", "completion": "c"} for n in range(8)])
    words = ("--input", "../a,1.csv:2,../b.jsonl:0.5", "--test-ratio", "0")
    ran = succeeds("prepare_data", *settings, *words, "--output-dir", "out")
    rows = [row for rows in read(tmp_path / "sub/out").values() for row in rows]
    assert len({row["id"] for row in rows}) == 9 + 4 < len(rows)
    assert "a,1.csv × 2: " in ran.out and "b.jsonl × 0.5: 4" in ran.out
    run = json.loads((tmp_path / "sub/out/train_run.json").read_text("utf-8"))
    assert [Path(one["path"]).name for one in run["inputs"]] == ["a,1.csv", "b.jsonl"]
    missing = ("--input", "../b.jsonl,none.csv", "--output-dir", "out2")
    refused(3, "none.csv: not there", "prepare_data", *settings, *missing)


def test_flags_only(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_raw(tmp_path / "raw.json", raw_rows())
    words = "--input raw.json --input-format json --format-type alpaca"
    ran = succeeds("prepare_data", *words.split(), "--output-dir", "out", "--output-name", "train")
    splits = read(tmp_path / "out")
    assert sorted(questions(splits)) == sorted(row["instruction"] for row in raw_rows())
    answers = {m["content"] for rows in splits.values() for m in [rows[0]["messages"][-1]]}
    assert answers <= {row["output"] for row in raw_rows()}
    assert all(splits.values()) and len(splits["train"]) > 60
    assert "wrote  out/train_train.jsonl\n" in ran.out
    assert ran.out.endswith(
        f"next:  {runnable('python finetune/train_lora.py')} --train-data out/train_train.jsonl\n"
    )
    run = json.loads((tmp_path / "out/train_run.json").read_text())
    assert run["command"][:3] == ["prepare_data.py", "--input", "raw.json"]
    assert {f"train_{split}.jsonl" for split in SPLITS} < set(run["files"])
    assert "rejected.jsonl" in run["files"] and "data_report.md" in run["files"]


def test_config_only_counts_tokens_with_the_base_model(rows) -> None:
    splits = read(rows)
    assert len(questions(splits)) == len(set(questions(splits))) == len(raw_rows())
    report = json.loads((rows / "data_report.json").read_text())
    assert "token" in json.dumps(report)
    assert (rows / "data_report.md").read_text().startswith("#")


def test_flags_win_over_the_config(settings, rows, tmp_path) -> None:
    flags = ("--output-dir", tmp_path, "--output-name", "mine", "--seed", 7, "--language", "zh")
    succeeds("prepare_data", *settings, *flags)
    assert (tmp_path / "mine_data_report.md").read_text("utf-8").startswith("# 数据报告")
    mine, theirs = read(tmp_path, "mine"), read(rows)
    assert sorted(questions(mine)) == sorted(questions(theirs))
    assert questions({"test": mine["test"]}) != questions({"test": theirs["test"]})


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("a.json", "utf-8-sig"), ("a.jsonl", "utf-8"), ("a.csv", "utf-8-sig"), ("a.csv", "gb18030")],
)
def test_every_format_gives_the_same_rows(name, encoding, settings, rows, tmp_path) -> None:
    file = write_raw(tmp_path / name, raw_rows(), encoding)
    succeeds("prepare_data", *settings, "--input", file, "--output-dir", tmp_path / "out")
    assert sorted(questions(read(tmp_path / "out"))) == sorted(questions(read(rows)))


def test_questions_and_answers_and_a_system_prompt(settings, tmp_path) -> None:
    rows = [{"question": r["instruction"], "answer": r["output"]} for r in raw_rows()]
    file = write_raw(tmp_path / "qa.jsonl", rows)
    flags = ("--input", file, "--format-type", "qa", "--output-dir", tmp_path / "out")
    succeeds("prepare_data", *settings, *flags, "--system-prompt", "Be brief.")
    prepared = [row for rows in read(tmp_path / "out").values() for row in rows]
    assert len(prepared) == len(rows)
    roles = [[m["role"] for m in row["messages"]] for row in prepared]
    assert roles == [["system", "user", "assistant"]] * len(rows)
    assert {row["messages"][0]["content"] for row in prepared} == {"Be brief."}


def test_rows_of_one_fact_stay_in_one_split(settings, tmp_path) -> None:
    rows = [row | {"fact": f"fact {place % 9}"} for place, row in enumerate(raw_rows())]
    file = write_raw(tmp_path / "raw.json", rows)
    succeeds("prepare_data", *settings, "--input", file, "--output-dir", tmp_path / "out")
    facts = [{row["fact"] for row in rows} for rows in read(tmp_path / "out").values()]
    assert sum(map(len, facts)) == len(set.union(*facts)) == 9


def test_a_row_without_output_is_set_aside_with_its_line(settings, tmp_path) -> None:
    rows = raw_rows()
    rows[4] = {"instruction": "What did the bird do?", "input": ""}
    rows[7] = rows[2]
    file = write_raw(tmp_path / "raw.jsonl", rows)
    ran = succeeds("prepare_data", *settings, "--input", file, "--output-dir", tmp_path / "out")
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").open()]
    assert [(one["line"], one["kind"]) for one in rejected] == [(5, "rejected"), (8, "duplicate")]
    assert "output" in rejected[0]["reason"] and "line 3" in rejected[1]["reason"]
    assert "left out (see rejected.jsonl): 2" in ran.out
    assert len(questions(read(tmp_path / "out"))) == len(rows) - 2


def test_a_dry_run_counts_and_writes_nothing(settings, tmp_path) -> None:
    ran = succeeds("prepare_data", *settings, "--output-dir", tmp_path / "out", "--dry-run")
    assert "would write" in ran.out and "test: " in ran.out and "nothing was written" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_finished_rows_are_replaced_only_with_overwrite(settings, tmp_path) -> None:
    words = ("prepare_data", *settings, "--output-dir", tmp_path)
    succeeds(*words)
    before = files_under(tmp_path)
    refused(2, "--overwrite", *words, "--seed", 7)
    assert files_under(tmp_path) == before
    succeeds(*words, "--seed", 7, "--overwrite")
    after = files_under(tmp_path)
    assert after.keys() == before.keys() and after["train_test.jsonl"] != before["train_test.jsonl"]


def test_two_names_share_a_folder_and_keep_their_own_reports(settings, tmp_path) -> None:
    words = ("prepare_data", *settings, "--output-dir", tmp_path, "--output-name")
    raw = write_raw(tmp_path / "short.json", raw_rows(5) + [{"instruction": "no answer"}])
    ran = succeeds(*words, "one", "--input", raw)
    assert "left out (see one_rejected.jsonl): 1" in ran.out and "one_data_report.md" in ran.out
    succeeds(*words, "two")
    succeeds(*words, "train")
    assert read(tmp_path, "two") == read(tmp_path, "train") != read(tmp_path, "one")
    reports = [tmp_path / f"{before}data_report.json" for before in ("one_", "two_", "")]
    assert [json.loads(one.read_text())["rows_in"] for one in reports] == [16, 90, 90]
    for name in ("one", "two", "train"):
        record = json.loads((tmp_path / f"{name}_run.json").read_text())
        for file, facts in record["files"].items():
            assert sha256(tmp_path / file) == facts["sha256"]


def test_an_empty_split_has_no_file_and_none_of_an_older_output_stays(settings, tmp_path) -> None:
    words = ("prepare_data", *settings, "--output-dir", tmp_path)
    succeeds(*words)
    assert (tmp_path / "train_test.jsonl").is_file()
    ran = succeeds(*words, "--overwrite", "--test-ratio", 0)
    assert not (tmp_path / "train_test.jsonl").exists() and "test: 0" in ran.out
    assert (tmp_path / "train_validation.jsonl").is_file()


def test_given_files_and_mapped_columns(settings, tmp_path) -> None:
    rows = [{"Frage": r["instruction"], "Antwort": r["output"]} for r in raw_rows()]
    raw = write_raw(tmp_path / "raw.csv", rows[:80])
    test = write_raw(tmp_path / "test.jsonl", rows[70:])
    flags = ["--input", raw, "--test-input", test, "--output-dir", tmp_path / "out"]
    refused(3, "columns found: Frage, Antwort", "prepare_data", *settings, *flags)
    flags += ["--columns", "question=Frage,answer=Antwort"]
    succeeds("prepare_data", *settings, *flags)
    splits = read(tmp_path / "out")
    assert len(splits["test"]) == 20 and len(splits["train"]) + len(splits["validation"]) == 70
    run = json.loads((tmp_path / "out/train_run.json").read_text())
    assert [Path(one["path"]).name for one in run["inputs"]] == ["raw.csv", "test.jsonl"]


def from_ready(source: Path, target: Path) -> bool:
    """Whether a finished file gets its own name."""
    return Path(source).parent.suffix == ".ready"


def nth(number: int, of: Callable[..., bool] = lambda *_, **__: True) -> Callable[..., bool]:
    """Says yes to the call of this number, of those that `of` says yes to."""
    calls = count(1)
    return lambda *given, **named: of(*given, **named) and next(calls) == number


MOMENTS = {
    "workers convert": ("slimtune.data.preparation.numbered_rows", nth(150)),
    "rows are written": ("slimtune.data.writing._put", nth(100)),
    "the report is written": ("slimtune.report.data_report.write_data_report", nth(1)),
    "the record is written": ("slimtune.artifacts.stages.write_json", nth(1)),
    "all is ready": ("slimtune.artifacts.stages.install", nth(1)),
    "files move": ("os.replace", nth(3, from_ready)),
}


@pytest.mark.parametrize("overwrite", [False, True], ids=["a first run", "an overwriting run"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_leaves_nothing_or_the_old_output(
    moment, overwrite, settings, tmp_path
) -> None:
    """`kill -9` where the run itself says how far it is, its two workers alive or gone."""
    raw, out = write_raw(tmp_path / "raw.json", raw_rows(100)), tmp_path / "out"
    words = ("prepare_data", *settings, "--base-model", tmp_path / "none", "--input", raw)
    words += ("--output-dir", out, "--workers", 2)
    if overwrite:
        succeeds(*words, "--seed", 1)
    old = finished_files(out)
    killed(*MOMENTS[moment], *words, "--overwrite", "--seed", 2)
    if (out / "train.ready").exists():  # all was finished: the next run moves it
        assert moment in ("all is ready", "files move")
        run(*words, "--seed", 2)
        found = finished_files(out)
        record = json.loads(found["train_run.json"])
        assert record["settings"]["data"]["seed"] == 2
        assert set(record["files"]) == set(found) - {"train_run.json"}
        assert all(sha256(out / k) == v["sha256"] for k, v in record["files"].items())
    else:
        assert finished_files(out) == old
        succeeds(*words, "--overwrite", "--seed", 3)
    assert not list(out.glob("*.partial"))


def finished_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_under(folder).items() if ".partial/" not in name}


def test_killed_while_files_get_their_names_is_finished_by_the_next(
    settings, tmp_path, monkeypatch
) -> None:
    class Killed(BaseException):
        pass

    def move(source: Path, target: Path) -> None:
        if Path(source).parent.suffix == ".ready":
            moved.append(target)
        if len(moved) == stop:
            raise Killed
        replace(source, target)

    replace, words = os.replace, ("prepare_data", *settings, "--output-dir")
    for stop, flags in ((1, []), (3, []), (8, ["--overwrite"])):
        out, moved = tmp_path / str(stop), []
        succeeds(*words, out, "--seed", 1)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(os, "replace", move)
            run("prepare_data", *settings, "--output-dir", out, "--seed", 2, "--overwrite")
        left = files_under(out)
        readers_stay_out(out / "train_train.jsonl", begun=stop > 1)
        assert run(*words, out, "--seed", 2, "--dry-run", *flags).code == 0
        assert files_under(out) == left
        # Once more the same command: it moves what waits; what is finished is not made again.
        ran = run(*words, out, "--seed", 2, *flags)
        assert ran.code == (0 if flags else 2) and "is finished now" in ran.err
        assert flags or "exists already" in ran.err
        require(out / "train_train.jsonl")
        record = json.loads((out / "train_run.json").read_text())
        assert record["settings"]["data"]["seed"] == 2
        assert all(sha256(out / k) == v["sha256"] for k, v in record["files"].items())
        assert not list(out.glob("*.ready")) and not list(out.glob("*.partial"))


def readers_stay_out(rows: Path, *, begun: bool) -> None:
    """Once a file of the new output has its place, old and new ones lie side by side."""
    if not begun:
        require(rows)
        return
    with pytest.raises(InputError, match=r"prepare_data\.py` again"):
        require(rows)


@pytest.mark.parametrize(
    ("code", "content", "flags", "words"),
    [
        (3, None, [], "not there"),
        (2, "[]", ["--input-format", "xml"], "xml is no data.input_format"),
        (2, "[]", ["--format-type", "alpacca"], "alpacca is no data.format_type"),
        (2, "[]", ["--output-name", "../up"], "output_name"),
        (2, "[]", ["--test-ratio", "0.9"], "below 1"),
        (3, "[]", [], "raw.json"),
        (3, '[{"instruction": "a", "output": "b"', [], "raw.json"),
        (3, '[{"text": "only text"}]', [], "columns found: text"),
        (3, '[{"question": "a", "answer": "b"}]', ["--format-type", "alpaca"], "alpaca"),
        (3, '[{"instruction": "a", "output": ""}]', [], "raw.json"),
    ],
)
def test_bad_input_is_refused(code, content, flags, words, settings, tmp_path) -> None:
    raw, out = tmp_path / "raw.json", tmp_path / "out"
    if content is not None:
        raw.write_text(content)
    refused(code, words, "prepare_data", *settings, "--input", raw, "--output-dir", out, *flags)
    assert leaves_nothing(out)


def test_rows_that_another_run_is_writing_are_left_alone(settings, tmp_path) -> None:
    with another_run_writing(tmp_path / "train_run.json"):
        refused(6, "another run", "prepare_data", *settings, "--output-dir", tmp_path)
    assert leaves_nothing(tmp_path)


def test_long_rows_are_shortened_and_told(settings, rows, tmp_path) -> None:
    longest = json.loads((rows / "data_report.json").read_text())["tokens"]["max"]
    flags = ("--output-dir", tmp_path, "--max-length", longest - 1)
    ran = succeeds("prepare_data", *settings, *flags)
    found = json.loads((tmp_path / "data_report.json").read_text())
    shortened = found["long_rows"]["shortened"]
    assert f"long rows shortened: {shortened}\n" in ran.out
    assert found["tokens"]["max"] == longest - 1 and found["tokens"]["batch_size"] == 16
    assert found["tokens"]["truncated_share"] == round(shortened / found["kept"], 4) > 0
    answers = {row["messages"][-1]["content"] for rows in read(tmp_path).values() for row in rows}
    assert answers == {row["output"] for row in raw_rows()}


@pytest.mark.parametrize(
    ("policy", "code", "words"),
    [("error", 3, "tokens, more than 16"), ("drop", 3, "longer than the limit")],
)
def test_long_rows_may_stop_the_run(policy, code, words, settings, tmp_path) -> None:
    flags = ("--output-dir", tmp_path / "out", "--max-length", 16, "--long-rows", policy)
    refused(code, words, "prepare_data", *settings, *flags)
    assert leaves_nothing(tmp_path / "out")


def test_a_broken_tokenizer_is_refused_and_a_missing_one_is_told(settings, tmp_path) -> None:
    (tmp_path / "base").mkdir()
    flags = ("--output-dir", tmp_path / "out", "--base-model", tmp_path / "base")
    refused(3, "no usable tokenizer", "prepare_data", *settings, *flags)
    (tmp_path / "base").rmdir()
    ran = succeeds("prepare_data", *settings, *flags)
    assert "tokens are not counted" in ran.err and "no such model folder" in ran.err
