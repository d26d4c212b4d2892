"""Several processes learn what one process learns from the same effective batch."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from running import run, succeeds
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.training import prechecks

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = ROOT / "finetune" / "launch"


def losses(adapter: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (adapter / "metrics.jsonl").open()]
    return [(e["step"], e[k]) for e in entries for k in ("loss", "eval_loss") if k in e]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def started(launch: str, script: Path | str, *words: object) -> subprocess.Popen[str]:
    """A script under `accelerate launch` with two processes on CPUs, through gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (sys.executable, "-m", "accelerate.commands.launch")
    file = script if isinstance(script, Path) else ROOT / "finetune" / f"{script}.py"
    return subprocess.Popen(
        [
            *(*command, "--config_file", str(LAUNCH / f"{launch}.yaml")),
            *("--main_process_port", str(port), str(file), *map(str, words)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def on_two_processes(launch: str, script: Path | str, *words: object) -> tuple[str, str]:
    """What a started script says on stdout and stderr; it must end well."""
    launched = started(launch, script, *words)
    out, err = launched.communicate(timeout=300)
    assert launched.returncode == 0, err
    return out, err


def rows_of_steps(rows: Path, tmp_path: Path, steps: int) -> tuple[object, ...]:
    """Words for as many full steps of eight rows, four for each of two processes."""
    few = tmp_path / "few.jsonl"
    lines = (rows / "train_train.jsonl").read_text(encoding="utf-8").splitlines()
    few.write_text("\n".join(lines[: 8 * steps]), encoding="utf-8")
    validation = rows / "train_validation.jsonl"
    return "--train-data", few, "--val-data", validation, "--batch-size", 4


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["ddp_cpu", "fsdp_cpu"])
def test_two_processes_distil_as_one_does(launch, settings, rows, pruned, tmp_path) -> None:
    words = [*settings, *rows_of_steps(rows, tmp_path, 3), "--text-data", "null", "--epochs", 2]
    one, two = tmp_path / "one", tmp_path / "two"
    script = "knowledge_distillation"
    alone = ("--output-dir", one, "--cache-dir", tmp_path / "said_to_one")
    succeeds(script, *words, *alone, "--gradient-accumulation-steps", 2)
    together = ("--output-dir", two, "--cache-dir", tmp_path / "said_to_two")
    on_two_processes(launch, script, *words, *together)
    ours, theirs = losses(two), losses(one)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["ddp_cpu", "fsdp_cpu"])
def test_two_processes_give_the_losses_of_one(launch, project, settings, rows, tmp_path) -> None:
    words = [*settings, *rows_of_steps(rows, tmp_path, 7), "--epochs", 2]
    one, two = tmp_path / "one", tmp_path / "two"
    succeeds(
        "train_lora", *words, "--output-dir", one, "--gradient-accumulation-steps", 2, "--seed", 42
    )
    out, err = on_two_processes(launch, "train_lora", *words, "--output-dir", two)
    ours, theirs = losses(two / "lora_adapter"), losses(one / "lora_adapter")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-5)
    assert theirs[0][1] - theirs[-1][1] > 0.5
    assert out.count("wrote  ") == 1
    assert err.count("a row, learned is") == 2  # two rows, said by one process
    assert sorted(path.name for path in two.glob("[!.]*")) == ["lora_adapter"]
    learned = weights(one / "lora_adapter")
    torch.testing.assert_close(weights(two / "lora_adapter"), learned, atol=1e-5, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(project / "base")
    PeftModel.from_pretrained(base, two / "lora_adapter")


@pytest.mark.slow
def test_all_weights_in_parts_survive_a_kill(settings, rows, tmp_path) -> None:
    """Moments and weights are put together for a checkpoint, and shared out again after it."""
    words = [*settings, *rows_of_steps(rows, tmp_path, 3), "--epochs", 3]
    words += ["--method", "full", "--learning-rate", 1e-3]
    one, two = tmp_path / "one", tmp_path / "two"
    succeeds("train_lora", *words, "--output-dir", one, "--gradient-accumulation-steps", 2)
    launched = started("fsdp_cpu", "train_lora", *words, "--output-dir", two)
    while not (two / "checkpoints" / "checkpoint-4").is_dir():
        assert launched.poll() is None, launched.stderr.read()
        time.sleep(0.01)
    for process in psutil.Process(launched.pid).children(recursive=True):
        process.kill()
    launched.communicate()
    assert not (two / "full_model").exists()
    _, err = on_two_processes("fsdp_cpu", "train_lora", *words, "--output-dir", two, "--resume")
    assert "resuming from" in err and "step 4/9" not in err
    ours, theirs = losses(two / "full_model"), losses(one / "full_model")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-5)
    # Of bf16 numbers the last bit: the base is stored in it.
    torch.testing.assert_close(
        weights(two / "full_model"), weights(one / "full_model"), atol=0, rtol=8e-3
    )


SHARE = """
import sys
from slimtune.config import Config
from slimtune.models import loading
from slimtune.training.attention import training_compute

model = loading.load_model(sys.argv[1], training_compute(Config().model))
here = sum(part.to_local().numel() for part in model.parameters())
print("share", here / model.num_parameters())
"""


@pytest.mark.slow
def test_each_process_holds_half_of_the_weights(project, tmp_path) -> None:
    script = tmp_path / "share.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'finetune')!r})\n{SHARE}")
    out, _ = on_two_processes("fsdp_cpu", script, project / "base")
    assert re.findall(r"share (.*)", out) == ["0.5", "0.5"]


LET_GO = """
import gc, sys, weakref
from pathlib import Path
from tiny_models import tiny_samples
from slimtune.config import Config, Training
from slimtune.models import loading
from slimtune.training import lora
from slimtune.training.attention import training_compute
from slimtune.training.fitting import fit

base = loading.load_model(sys.argv[1], training_compute(Config().model))
model = lora.attach(base, Config().lora, seed=0)
fit(model, tiny_samples(8), [], Training(epochs=1, batch_size=4), Path(sys.argv[2]))
kept = weakref.ref(base.model.layers[0])
del base, model
gc.collect()
print("freed", kept() is None)
"""


@pytest.mark.slow
def test_a_base_in_parts_leaves_memory_after_training(project, tmp_path) -> None:
    """Hooks on the adapters hold the Trainer, and nothing frees a tensor's hooks but the tensor."""
    script = tmp_path / "let_go.py"
    roots = [str(ROOT / "finetune"), str(ROOT / "tests")]
    script.write_text(f"import sys\nsys.path[:0] = {roots!r}\n{LET_GO}")
    out, _ = on_two_processes("fsdp_cpu", script, project / "base", tmp_path / "checkpoints")
    assert re.findall(r"freed (.*)", out) == ["True", "True"]


def test_only_the_first_process_locks_and_writes(tmp_path, monkeypatch) -> None:
    final = tmp_path / "out"
    with stage_folder("x", final, Config()) as first:
        monkeypatch.setenv("RANK", "1")
        with stage_folder("x", final, Config()) as other:  # no LockedError
            (other.folder / "theirs").touch()
        monkeypatch.delenv("RANK")
        (first.folder / "ours").touch()
    assert sorted(path.name for path in final.iterdir()) == ["ours", "run.json"]


def test_what_accelerate_leaves_unsaid(settings, rows, monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    run("train_lora", *settings, "--output-dir", tmp_path, "--dry-run")
    assert "accelerate started one process" in caplog.text


def test_gpus_left_idle_are_spoken_of(monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setattr(prechecks, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    prechecks.precheck(Config(), tmp_path)
    assert "one of 4 GPUs" in caplog.text and "ddp_gpus.yaml" in caplog.text
    caplog.clear()
    monkeypatch.setenv("WORLD_SIZE", "4")
    prechecks.precheck(Config(), tmp_path)
    assert not caplog.text
