"""Several processes learn what one process learns from the same effective batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import run, succeeds

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.console import SettingsError
from slimtune.training import starting

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = ROOT / "finetune" / "launch"


def losses(adapter: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (adapter / "metrics.jsonl").open()]
    return [(e["step"], e[k]) for e in entries for k in ("loss", "eval_loss") if k in e]


def on_two_processes(port: int, script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A script under `accelerate launch`, DDP through gloo; it must end well."""
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(LAUNCH / "ddp_cpu.yaml"), "--main_process_port", str(port)),
            *(str(ROOT / "finetune" / f"{script}.py"), *map(str, words)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr
    return launched


@pytest.mark.slow
def test_two_processes_distil_as_one_does(settings, rows, pruned, tmp_path) -> None:
    few = tmp_path / "few.jsonl"
    lines = (rows / "train_train.jsonl").read_text(encoding="utf-8").splitlines()
    few.write_text("\n".join(lines[:24]), encoding="utf-8")  # three full steps of eight
    words = [
        *map(str, settings),
        *("--train-data", str(few), "--val-data", str(rows / "train_validation.jsonl")),
        *("--text-data", "null", "--batch-size", "4", "--epochs", "2"),
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    script = "knowledge_distillation"
    alone = ("--output-dir", one, "--cache-dir", tmp_path / "said_to_one")
    succeeds(script, *words, *alone, "--gradient-accumulation-steps", 2)
    together = ("--output-dir", two, "--cache-dir", tmp_path / "said_to_two")
    on_two_processes(29612, script, *words, *together)
    ours, theirs = losses(two), losses(one)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(settings, rows, tmp_path) -> None:
    few = tmp_path / "few.jsonl"
    lines = (rows / "train_train.jsonl").read_text(encoding="utf-8").splitlines()
    few.write_text("\n".join(lines[:56]), encoding="utf-8")  # seven full steps of eight
    words = [
        *map(str, settings),
        *("--train-data", str(few), "--val-data", str(rows / "train_validation.jsonl")),
        *("--batch-size", "4", "--epochs", "2"),
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    succeeds(
        "train_lora", *words, "--output-dir", one, "--gradient-accumulation-steps", 2, "--seed", 42
    )
    launched = on_two_processes(29611, "train_lora", *words, "--output-dir", two)
    ours, theirs = losses(two / "lora_adapter"), losses(one / "lora_adapter")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-5)
    assert theirs[0][1] - theirs[-1][1] > 0.5
    assert launched.stdout.count("wrote  ") == 1
    assert launched.stderr.count("a row, learned is") == 2  # two rows, said by one process
    assert sorted(path.name for path in two.glob("[!.]*")) == ["lora_adapter"]


def test_only_the_first_process_locks_and_writes(tmp_path, monkeypatch) -> None:
    final = tmp_path / "out"
    with stage_folder("x", final, Config()) as first:
        monkeypatch.setenv("RANK", "1")
        with stage_folder("x", final, Config()) as other:  # no LockedError
            (other.folder / "theirs").touch()
        monkeypatch.delenv("RANK")
        (first.folder / "ours").touch()
    assert sorted(path.name for path in final.iterdir()) == ["ours", "run.json"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate started one process"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP needs GPUs"),
    ],
)
def test_what_accelerate_leaves_unsaid(
    variables, words, settings, rows, monkeypatch, caplog, tmp_path
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run("train_lora", *settings, "--output-dir", tmp_path, "--dry-run")
    assert words in caplog.text


def test_fsdp_on_gpus_is_refused_before_any_work(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(starting, "choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(SettingsError, match="FSDP is not supported"):
        starting.check(tmp_path, Config())


def test_gpus_left_idle_are_spoken_of(monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setattr(starting, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    starting.check(tmp_path, Config())
    assert "one of 4 GPUs" in caplog.text and "ddp_gpus.yaml" in caplog.text
    caplog.clear()
    monkeypatch.setenv("WORLD_SIZE", "4")
    starting.check(tmp_path, Config())
    assert not caplog.text
