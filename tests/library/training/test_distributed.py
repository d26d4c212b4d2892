"""Several processes learn what one process learns from the same effective batch."""

import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from launches import SCRIPTS, forked, launched
from peft import PeftModel
from running import run, succeeds
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.training import prechecks


def losses(adapter: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (adapter / "metrics.jsonl").open()]
    return [(e["step"], e[k]) for e in entries for k in ("loss", "eval_loss") if k in e]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def said(folder: Path, job: int, kind: str) -> str:
    """What both processes said on `out` or `err` during one job."""
    return "".join((folder / f"{job}.{rank}.{kind}").read_text("utf-8") for rank in (0, 1))


def rows_of_steps(rows: Path, few: Path, steps: int) -> tuple[object, ...]:
    """Words for as many full steps of eight rows, four for each of two processes."""
    lines = (rows / "train_train.jsonl").read_text(encoding="utf-8").splitlines()
    few.write_text("\n".join(lines[: 8 * steps]), encoding="utf-8")
    validation = rows / "train_validation.jsonl"
    return "--train-data", few, "--val-data", validation, "--batch-size", 4


def same_losses(two: Path, one: Path) -> None:
    ours, theirs = losses(two), losses(one)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-5)


SHARE = """
import sys
from slimtune.config import Config
from slimtune.models import loading
from slimtune.training.attention import training_compute

model = loading.load_model(sys.argv[1], training_compute(Config().model))
here = sum(part.to_local().numel() for part in model.parameters())
print("share", here / model.num_parameters())
"""

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
settings = Training(epochs=1, batch_size=4, learning_rate=4e-3)
fit(model, tiny_samples(8), [], settings, Path(sys.argv[2]))
kept = weakref.ref(base.model.layers[0])
del base, model
gc.collect()
print("freed", kept() is None)
"""

# A script whose first process dies of `kill -9` as it begins the step after the fourth: whoever
# looked from outside for a checkpoint could come too late.
DIES = """
import os, runpy, signal, sys
from slimtune.training.trainer import SlimTrainer

def dies(trainer, *arguments, **named):
    if os.environ["RANK"] == "0" and trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, *arguments, **named)

step, SlimTrainer.training_step = SlimTrainer.training_step, dies
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


LAUNCHED = ", launched"  # the processes import torch, forks do not


@pytest.fixture(scope="module")
def full_run(settings, rows, tmp_path_factory) -> list[object]:
    """The command line of a run that trains all weights, without its output folder."""
    few = rows_of_steps(rows, tmp_path_factory.mktemp("full") / "few.jsonl", 3)
    full = ["--epochs", 3, "--method", "full", "--learning-rate", 1e-3]
    return [SCRIPTS / "train_lora.py", *settings, *few, *full]


@pytest.fixture(scope="module")
def killed_run(full_run, tmp_path_factory) -> Path:
    """The output folder of a run in parts that was killed after the checkpoint of step 4 of 9."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "dies.py").write_text(DIES, encoding="utf-8")
    job = [folder / "dies.py", *full_run, "--output-dir", folder / "made"]
    forked("fsdp_cpu", job, folder=folder, killed=True)
    assert (folder / "made" / "checkpoints" / "checkpoint-4").is_dir(), said(folder, 0, "err")
    assert not (folder / "made" / "full_model").exists()
    return folder / "made"


@pytest.fixture(scope="module")
def trained(
    project, settings, rows, pruned, full_run, killed_run, tmp_path_factory
) -> Callable[[str], Path]:
    """The folder of what two processes made under a launch file: adapter and student. Under FSDP
    they also ran the two programs above and went on with the killed run. They are forks, or of
    `accelerate launch` where LAUNCHED says so. One process has made `alone`.
    """
    folder = tmp_path_factory.mktemp("distributed")
    few = [*settings, *rows_of_steps(rows, folder / "three.jsonl", 3), "--text-data", "null"]
    several = [*settings, *rows_of_steps(rows, folder / "seven.jsonl", 7)]

    def jobs(where: Path) -> list[list[object]]:
        distil = [*few, "--epochs", 2, "--cache-dir", where / "cache"]
        return [
            [SCRIPTS / "train_lora.py", *several, "--epochs", 2, "--output-dir", where],
            [SCRIPTS / "knowledge_distillation.py", *distil, "--output-dir", where / "student"],
        ]

    for script, *words in jobs(folder / "alone"):
        succeeds(script.stem, *words, "--gradient-accumulation-steps", 2)

    @cache
    def under(launch: str) -> Path:
        where, programs = folder / launch, []
        where.mkdir()
        if launch == "fsdp_cpu":
            for name, text in (("share", SHARE), ("let_go", LET_GO)):
                (where / f"{name}.py").write_text(text, encoding="utf-8")
                programs.append([where / f"{name}.py", project / "base", where / "checkpoints"])
            programs.append([*full_run, "--output-dir", killed_run, "--resume"])
        start = launched if launch.endswith(LAUNCHED) else forked
        file = launch.removesuffix(LAUNCHED)
        start(file, *jobs(where / "made"), *programs, folder=where)
        return where

    return under


AS_USERS_DO = pytest.param(f"fsdp_cpu{LAUNCHED}", marks=pytest.mark.long)
LAUNCHES = pytest.mark.parametrize("launch", ["ddp_cpu", "fsdp_cpu", AS_USERS_DO])


@pytest.mark.slow
@LAUNCHES
def test_two_processes_distil_as_one_does(launch, trained) -> None:
    folder = trained(launch)
    same_losses(folder / "made/student", folder.parent / "alone/student")


@pytest.mark.slow
@LAUNCHES
def test_two_processes_give_the_losses_of_one(launch, trained, project) -> None:
    folder = trained(launch)
    two, one = folder / "made/lora_adapter", folder.parent / "alone/lora_adapter"
    same_losses(two, one)
    assert losses(one)[0][1] - losses(one)[-1][1] > 0.5
    assert said(folder, 0, "out").count("wrote  ") == 1
    introduced = "the first training rows as the model reads them"
    assert said(folder, 0, "err").count(introduced) == 1  # by one process
    assert sorted(path.name for path in two.parent.glob("[!.]*")) == [
        "cache",
        "lora_adapter",
        "student",
    ]
    torch.testing.assert_close(weights(two), weights(one), atol=1e-5, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(project / "base")
    PeftModel.from_pretrained(base, two)


@pytest.mark.slow
def test_all_weights_in_parts_survive_a_kill(trained, full_run, killed_run, tmp_path) -> None:
    """Moments and weights are put together for a checkpoint, and shared out again after it."""
    told = said(trained("fsdp_cpu"), 4, "err")
    assert "resuming from" in told and "step 4/9" not in told
    _, *words = full_run
    alone = ("--output-dir", tmp_path, "--gradient-accumulation-steps", 2)
    succeeds("train_lora", *words, *alone)
    two, one = killed_run / "full_model", tmp_path / "full_model"
    same_losses(two, one)
    # Of bf16 numbers the last bit: the base is stored in it.
    torch.testing.assert_close(weights(two), weights(one), atol=0, rtol=8e-3)


@pytest.mark.slow
def test_each_process_holds_half_of_the_weights(trained) -> None:
    assert re.findall(r"share (.*)", said(trained("fsdp_cpu"), 2, "out")) == ["0.5", "0.5"]


@pytest.mark.slow
def test_a_base_in_parts_leaves_memory_after_training(trained) -> None:
    """Hooks on the adapters hold the Trainer, and nothing frees a tensor's hooks but the tensor."""
    assert re.findall(r"freed (.*)", said(trained("fsdp_cpu"), 3, "out")) == ["True", "True"]


ROOM_FOR = """
import os, sys
from tiny_models import tiny_samples
from slimtune.config import Config
from slimtune.models import memory
from slimtune.training import automatic, estimates

config = Config()
run = estimates.adapter_run(config, sys.argv[1], tiny_samples(40))
rows = [8, 1][int(os.environ["RANK"])]
room = run.needs(rows).total * memory.RESERVE * int(os.environ["LOCAL_WORLD_SIZE"]) + 10_000
memory.available_memory = lambda device: int(room)
settings = automatic.settled(config, run)[0].training
print(rows, settings.batch_size, settings.gradient_accumulation_steps)
"""


IN_TURN = """
import os, sys, time
from slimtune.config import Config
from slimtune.training.teachers import first_process_first

with first_process_first(Config()), open(sys.argv[1], "a") as order:
    if os.environ["RANK"] == "0":
        time.sleep(0.5)
    order.write(os.environ["RANK"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="two forks of this process")
def test_the_first_process_goes_in_alone_on_cpus_too(tmp_path) -> None:
    job = tmp_path / "in_turn.py"
    job.write_text(IN_TURN, encoding="utf-8")
    forked("ddp_cpu", [job, tmp_path / "order"], folder=tmp_path / "jobs")
    assert (tmp_path / "order").read_text() == "01"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="two forks of this process")
def test_processes_with_unequal_memory_agree_on_one_batch(project, tmp_path) -> None:
    """With another number of rows or steps in each, gradients would wait for ever."""
    job = tmp_path / "room_for.py"
    job.write_text(ROOM_FOR, encoding="utf-8")
    forked("ddp_cpu", [job, project / "base"], folder=tmp_path / "jobs")
    assert said(tmp_path / "jobs", 0, "out") == "8 8 2\n1 8 2\n"


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
