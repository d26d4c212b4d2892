"""create_sample_data.py: checkable rows, plain text, two models; same seed, same bytes."""

import csv
import json

import pytest
from running import another_run_writing, files_under, leaves_nothing, refused, run, succeeds
from tiny_folders import write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune.config.data import Data
from slimtune.console import runnable
from slimtune.data.preparation import prepare
from slimtune.sample import check_answer, parts, pretraining
from slimtune.sample.kinds import SAMPLE_FILES

QUICK = ("--rows", 200, "--text-lines", 100)


@pytest.fixture
def tiny_weights(tmp_path_factory, monkeypatch) -> None:
    """Tiny models in place of the shipped ones, for tests of what happens to them."""
    folder = tmp_path_factory.mktemp("weights")
    for name in parts.SAMPLE_MODELS:
        write_tiny_llama(folder / name, hidden=64)
    monkeypatch.setattr(parts, "WEIGHTS", folder)


def words_for(folder) -> tuple:
    return "--output-dir", folder / "data", "--models-dir", folder / "sample"


def test_flags_only_with_the_shipped_models(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("create_sample_data", *QUICK, "--output-dir", "data", "--models-dir", "sample")
    ran = succeeds(*words)
    assert ran.out.startswith("wrote  data/raw_data.json\nwrote  sample\n")
    assert ran.out.endswith(
        f"next:  {runnable('python finetune/prepare_data.py')} --input data/raw_data.json\n"
    )
    base, teacher = (
        AutoModelForCausalLM.from_pretrained(f"sample/{n}") for n in parts.SAMPLE_MODELS
    )
    assert teacher.num_parameters() > base.num_parameters() > 1_000_000
    tokenizer = AutoTokenizer.from_pretrained("sample/base")
    assert tokenizer.decode(tokenizer("今天 12").input_ids, skip_special_tokens=True) == "今天 12"


@pytest.mark.usefixtures("tiny_weights")
class TestWithTinyModels:
    def test_config_only(self, tmp_path) -> None:
        settings = "sample: {rows: 200, text_lines: 100, seed: 7}\n"
        (tmp_path / "config.yaml").write_text(settings)
        succeeds("create_sample_data", "--config", tmp_path / "config.yaml")
        assert len(json.loads((tmp_path / "data/raw_data.json").read_text("utf-8"))) == 200
        assert len((tmp_path / "data/sample_text.txt").read_text("utf-8").splitlines()) == 100
        for manifest in ("data/raw_data_run.json", "models/sample/run.json"):
            record = json.loads((tmp_path / manifest).read_text())
            assert record["settings"]["sample"]["seed"] == 7
        assert {"base/model.safetensors", "teacher/tokenizer.model"} <= set(record["files"])

    def test_every_answer_can_be_checked_and_the_csv_says_the_same(self, tmp_path) -> None:
        succeeds("create_sample_data", *QUICK, *words_for(tmp_path))
        rows = json.loads((tmp_path / "data/raw_data.json").read_text("utf-8"))
        assert all(check_answer(row, row["output"]) for row in rows)
        assert not any(check_answer(row, "no idea") for row in rows)
        with (tmp_path / "data/raw_data.csv").open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
        assert [row["output"] for row in table] == [row["output"] for row in rows]
        assert any("\u4e00" <= row["instruction"][0] <= "\u9fff" for row in rows)

    def test_the_seed_decides_every_byte(self, tmp_path) -> None:
        for name, seed in (("one", 1), ("two", 1), ("three", 2)):
            words = ("--seed", seed, *words_for(tmp_path / name))
            succeeds("create_sample_data", *QUICK, *words)
        files = [tmp_path / name / "data/raw_data.json" for name in ("one", "two", "three")]
        one, two, three = (file.read_bytes() for file in files)
        assert one == two != three

    def test_training_the_models_shows_them_no_row_of_the_test_split(
        self, tmp_path, monkeypatch
    ) -> None:
        seen = []

        def train_models(folder, seed, dataset) -> None:
            seen.extend(dataset)
            (folder / "base").mkdir()
            (folder / "base/config.json").write_text("{}")

        monkeypatch.setattr(pretraining, "train_models", train_models)
        succeeds("create_sample_data", *QUICK, *words_for(tmp_path), "--train-models")
        prepared = prepare(Data(input=tmp_path / "data/raw_data.json"))
        assert seen == [row["messages"] for row in prepared.rows("train")]
        assert prepared.rows("test")

    def test_a_dry_run_writes_nothing(self, tmp_path) -> None:
        ran = succeeds("create_sample_data", *QUICK, *words_for(tmp_path), "--dry-run")
        assert "would write" in ran.out and "rows: 200" in ran.out
        assert list(tmp_path.iterdir()) == []

    def test_finished_data_is_replaced_only_with_overwrite(self, tmp_path) -> None:
        words = ("create_sample_data", *QUICK, *words_for(tmp_path))
        succeeds(*words)
        before = files_under(tmp_path)
        refused(2, "--overwrite", *words, "--seed", 7)
        assert files_under(tmp_path) == before
        succeeds(*words, "--seed", 7, "--overwrite")
        after = files_under(tmp_path)
        assert after.keys() == before.keys()
        assert after["data/raw_data.json"] != before["data/raw_data.json"]

    def test_a_stop_between_rows_and_models_goes_on(self, tmp_path, monkeypatch) -> None:
        def stop(*_) -> None:
            raise KeyboardInterrupt

        words = ("create_sample_data", *QUICK, *words_for(tmp_path))
        with monkeypatch.context() as patched:
            patched.setattr("slimtune.sample.parts.unpack", stop)
            assert run(*words).code == 130
        assert not list((tmp_path / "sample").glob("*"))
        before = files_under(tmp_path)
        refused(2, "exists already", *words, "--seed", 7)  # those rows are not these
        assert files_under(tmp_path) == before
        ran = succeeds(*words)
        assert "kept" in ran.err and "raw_data.json" in ran.err
        assert ran.out.startswith("wrote  ") and "raw_data.json\n" not in ran.out.splitlines()[0]
        after = files_under(tmp_path)
        assert before.items() <= after.items() and "sample/run.json" in after
        refused(2, "exists already", *words)

    def test_models_without_rows_are_kept_too(self, tmp_path) -> None:
        words = ("create_sample_data", *QUICK, *words_for(tmp_path))
        succeeds(*words)
        before = files_under(tmp_path / "sample")
        (tmp_path / "data/raw_data_run.json").unlink()
        assert f"kept  {tmp_path / 'sample'}" in succeeds(*words).err
        assert files_under(tmp_path / "sample") == before

    def test_every_kind_says_the_same(self, tmp_path) -> None:
        words = ("create_sample_data", *QUICK, *words_for(tmp_path))
        succeeds(*words)
        ran = succeeds(*words, "--kind", "all")
        assert "kept" in ran.err and ran.out.count("wrote  ") == 4
        data = tmp_path / "data"
        rows = json.loads((data / "raw_data.json").read_text("utf-8"))
        lines = (data / "raw_data.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
        with (data / "raw_data_gbk.csv").open(encoding="gbk", newline="") as file:
            assert list(csv.DictReader(file)) == rows
        with pytest.raises(UnicodeDecodeError):
            (data / "raw_data_gbk.csv").read_text("utf-8")
        conversations = json.loads((data / "raw_data_sharegpt.json").read_text("utf-8"))
        for row, told in zip(rows, conversations, strict=True):
            asked, answered = (turn["value"] for turn in told["conversations"])
            assert asked.split("\n\n") == [
                part for part in (row["instruction"], row["input"]) if part
            ]
            assert answered == row["output"] and told["fact"] == row["fact"]

    def test_every_kind_prepares_to_the_same_rows(self, tmp_path) -> None:
        words = words_for(tmp_path)
        succeeds("create_sample_data", *QUICK, *words, "--kind", "all")
        said = {}
        clean = [name for kind, name in SAMPLE_FILES.items() if kind != "messy"]
        for name in ("raw_data.json", *clean):
            out = tmp_path / name.replace(".", "_")
            flags = ("--output-dir", out, "--base-model", tmp_path / "none")
            succeeds("prepare_data", "--input", tmp_path / "data" / name, *flags)
            said[name] = {
                file.name: [json.loads(line)["messages"] for line in file.open(encoding="utf-8")]
                for file in sorted(out.glob("train_*.jsonl"))
            }
        assert len(said) == 5 and len(said["raw_data.json"]) == 3
        assert all(one == said["raw_data.json"] for one in said.values())

    @pytest.mark.parametrize("seed", [42, 7])
    def test_the_report_counts_exactly_what_was_planted(self, tmp_path, seed) -> None:
        words = (*QUICK, *words_for(tmp_path), "--seed", seed, "--kind", "messy")
        ran = succeeds("create_sample_data", *words)
        assert "messy rejected: 20" in ran.out
        file = tmp_path / "data/raw_data_messy.jsonl"
        run = json.loads((tmp_path / "data/raw_data_messy_run.json").read_text())
        planted = {name.removeprefix("messy "): n for name, n in run["metrics"].items()}
        assert planted["rows_in"] == len(file.read_text("utf-8").splitlines())
        assert min(planted.values()) == 4
        flags = ("--output-dir", tmp_path / "out", "--base-model", tmp_path / "none")
        succeeds("prepare_data", "--input", file, *flags)
        found = json.loads((tmp_path / "out/data_report.json").read_text("utf-8"))
        counted = found | found["cleaning"]
        assert {name: counted[name] for name in planted} == planted
        left_out = ("rejected", "duplicates", "near_duplicates", "leaks")
        assert found["kept"] == planted["rows_in"] - sum(planted[name] for name in left_out)

    def test_a_kind_is_added_to_what_is_there_and_named_next(self, tmp_path) -> None:
        words = ("create_sample_data", *QUICK, *words_for(tmp_path))
        succeeds(*words)
        before = files_under(tmp_path)
        ran = succeeds(*words, "--kind", "gbk")
        assert ran.out.endswith(f"--input {tmp_path / 'data/raw_data_gbk.csv'}\n")
        after = files_under(tmp_path)
        assert before.items() < after.items()
        assert after.keys() - before.keys() == {
            "data/raw_data_gbk.csv",
            "data/raw_data_gbk_run.json",
        }
        refused(2, "exists already", *words, "--kind", "gbk")

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--rows", "0"], "0 is no sample.rows"),
            (["--rows", "many"], "many is no sample.rows"),
            (["--sede", "7"], "did you mean --seed?"),
        ],
    )
    def test_bad_settings_are_refused(self, flags, words, tmp_path) -> None:
        refused(2, words, "create_sample_data", *words_for(tmp_path), *flags)
        assert leaves_nothing(tmp_path)

    @pytest.mark.parametrize("locked", ["data/raw_data_run.json", "sample"])
    def test_what_another_run_is_writing_is_left_alone(self, locked, tmp_path) -> None:
        with another_run_writing(tmp_path / locked):
            refused(6, "another run", "create_sample_data", *QUICK, *words_for(tmp_path))
        assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "sample").exists()
