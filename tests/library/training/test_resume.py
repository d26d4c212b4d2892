"""A run that was killed or interrupted goes on to the very same weights, or says why not."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from running import killed, refused, run, succeeds
from safetensors.torch import load_file

from slimtune.errors import InputError
from slimtune.training import checkpoints, pipeline

WEIGHTS = "lora_adapter/adapter_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def nine_rows_choose() -> Iterator[None]:
    """The best checkpoint is kept beside the newest, as of any larger set of rows."""
    with patch.object(pipeline, "LEAST_TO_CHOOSE", 1):
        yield


@pytest.fixture(scope="module")
def words(settings, rows) -> tuple:
    """Twenty steps with a save after every second one."""
    several = tuple(["--evaluations-per-epoch=4", "--batch-size=8", "--epochs=2.5"])
    return "train_lora", *settings, *several, "--lora-dropout=0.1"


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    succeeds(*words, "--output-dir", folder)
    return folder


@pytest.fixture(autouse=True)
def said(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "slimtune")
    return caplog


def same(folder: Path, whole: Path) -> bool:
    ours, theirs = load_file(folder / WEIGHTS), load_file(whole / WEIGHTS)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


def steps(file: Path) -> list[tuple[int, str]]:
    entries = [json.loads(line) for line in file.open()]
    kinds = ("loss", "eval_loss", "train_runtime")
    return [(entry["step"], kind) for entry in entries for kind in kinds if kind in entry]


def saves(folder: Path, name: str = "checkpoints") -> list[str]:
    try:
        return [one for one in os.listdir(folder / name) if one.startswith("checkpoint-")]
    except FileNotFoundError:
        return []


def partials(*where: object) -> list[str]:
    return [name for name in saves(*where) if name.endswith(".partial")]


# The weights of a checkpoint are written; what is called next makes it whole.
SAVE = "slimtune.training.checkpoints.seal_as"
STEP = "slimtune.training.trainer.SlimTrainer.training_step"


def not_the_first(partial: Path, final: Path, facts: dict) -> bool:
    """Whether another checkpoint is whole while this one is being written."""
    return len(saves(partial.parent.parent, partial.parent.name)) > 1


def test_killed_during_a_save(words, whole, said, tmp_path) -> None:
    killed(SAVE, not_the_first, *words, "--output-dir", tmp_path)
    assert len(partials(tmp_path)) == 1 and len(saves(tmp_path)) == 2
    succeeds(*words, "--output-dir", tmp_path, "--resume")
    assert "resuming from" in said.text and same(tmp_path, whole)


def test_products_in_bfloat16_go_on_to_the_same_bits(words, tmp_path) -> None:
    def in_step_6(trainer: object, *_: object, **__: object) -> bool:
        return trainer.state.global_step == 5

    half = (*words, "--dtype=bfloat16")
    succeeds(*half, "--output-dir", tmp_path / "whole")
    killed(STEP, in_step_6, *half, "--output-dir", tmp_path / "killed")
    succeeds(*half, "--output-dir", tmp_path / "killed", "--resume")
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_a_streamed_run_goes_on_to_the_bits_of_one_in_memory(words, whole, said, tmp_path) -> None:
    def in_step_6(trainer: object, *_: object, **__: object) -> bool:
        return trainer.state.global_step == 5

    killed(STEP, in_step_6, *words, "--stream-base", "--output-dir", tmp_path)
    succeeds(*words, "--stream-base", "--output-dir", tmp_path, "--resume")
    assert "stream base: on, as set" in said.text
    assert same(tmp_path, whole)


def test_killed_between_two_saves(words, whole, tmp_path) -> None:
    def in_step_6(trainer: object, *_: object, **__: object) -> bool:
        return trainer.state.global_step == 5

    killed(STEP, in_step_6, *words, "--output-dir", tmp_path)
    assert "checkpoint-4" in saves(tmp_path) and not partials(tmp_path)
    refused(2, "--resume", *words, "--output-dir", tmp_path)
    succeeds(*words, "--output-dir", tmp_path, "--resume")
    assert same(tmp_path, whole)
    assert not (tmp_path / "checkpoints").exists()
    lines = steps(tmp_path / "lora_adapter" / "metrics.jsonl")
    assert len(lines) == len(set(lines)) and lines == steps(whole / "lora_adapter/metrics.jsonl")


@pytest.fixture
def stopped(stopped_once, words, tmp_path, monkeypatch, signals_as_in_a_terminal) -> Path:
    """The folder of a run that was asked to stop in step 5, between two saves.

    It stopped in the first test that asks for one; others get a copy, for a folder may move.
    """
    if not stopped_once.exists():
        ask_to_stop(words, stopped_once, monkeypatch)
    return Path(shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "made"


def ask_to_stop(words: tuple, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(trainer: object, *_: object, **__: object) -> object:
        if trainer.state.global_step == 4:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, *_, **__)

    from slimtune.training.trainer import SlimTrainer

    step = SlimTrainer.training_step
    with monkeypatch.context() as patched:
        patched.setattr(SlimTrainer, "training_step", ask)
        ran = run(*words, "--output-dir", folder)
    assert ran.code == 130, ran.err
    assert "step 5 of" in ran.err and "--resume" in ran.err.splitlines()[-1]


def test_ctrl_c_finishes_the_step_saves_and_can_go_on(words, whole, stopped) -> None:
    assert "checkpoint-5" in saves(stopped) and len(saves(stopped)) == 2
    succeeds(*words, "--output-dir", stopped, "--resume")
    assert same(stopped, whole)


def test_a_broken_checkpoint_is_named_and_passed_over(words, whole, said, stopped) -> None:
    weights = stopped / "checkpoints/checkpoint-5/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    succeeds(*words, "--output-dir", stopped, "--resume")
    assert "checkpoint-5: not whole (adapter_model.safetensors" in said.text
    assert "resuming from" in said.text and same(stopped, whole)


@pytest.mark.parametrize("files", [{"../../../outside": "0" * 64}, ["optimizer.pt"]])
def test_a_checkpoint_that_names_other_files_is_passed_over(files, tmp_path) -> None:
    (tmp_path / "outside").write_bytes(b"not to be read")
    for name in ("checkpoint-3", "checkpoint-of-mine"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        manifest = tmp_path / "checkpoints" / name / "checkpoint.json"
        manifest.write_text(json.dumps({"step": 3, "finished": True, "files": files}))
    assert [path.name for path in checkpoints.found(tmp_path / "checkpoints")] == ["checkpoint-3"]
    with pytest.raises(InputError, match="none of its checkpoints is whole"):
        checkpoints.to_resume(tmp_path / "checkpoints", {})


def test_nothing_to_resume_names_where_there_are_checkpoints(words, stopped, tmp_path) -> None:
    shutil.move(stopped / "checkpoints", stopped / "mine" / "checkpoints")
    here = ("--output-dir", stopped / "mistyped", "--resume")
    error = refused(2, "nothing to resume, no run was stopped here", *words, *here)
    assert error[2].endswith(f"there are checkpoints in {stopped}/mine/checkpoints")
    ran = succeeds(*words, *here, "--dry-run")
    assert "would need to be started without --resume" in ran.err
    assert not (stopped / "mistyped").exists()
    alone = ("--output-dir", tmp_path / "deep" / "er" / "alone", "--resume")
    assert "without --resume" in refused(2, "nothing to resume", *words, *alone)[2]


def test_a_run_killed_before_its_first_checkpoint_starts_again(words, whole, tmp_path) -> None:
    killed(STEP, lambda *_, **__: True, *words, "--output-dir", tmp_path)
    assert not saves(tmp_path)
    succeeds(*words, "--output-dir", tmp_path, "--resume")
    assert same(tmp_path, whole)


def test_a_finished_run_says_so(words, whole) -> None:
    error = refused(2, "exists already", *words, "--output-dir", whole, "--resume")
    assert "this run has finished, nothing is left for --resume" in error[1]


def test_a_missing_optimizer_is_not_ignored(words, said, stopped) -> None:
    for optimizer in stopped.rglob("optimizer_state.pt"):
        optimizer.unlink()
    going_on = (*words, "--output-dir", stopped, "--resume")
    for more in ((), ("--dry-run",)):
        error = refused(3, "none of its checkpoints is whole", *going_on, *more)
        assert "checkpoint-4" in error[0] and "checkpoint-5" in error[0]
        assert "--overwrite" in error[2]
    assert said.text.count("optimizer_state.pt is missing") == 4
    assert len(saves(stopped)) == 2


def test_a_checkpoint_of_an_earlier_version_is_passed_over(said, tmp_path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    manifest = '{"step": 1, "finished": false, "files": {}}'
    (tmp_path / "checkpoint-1" / "checkpoint.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(InputError):
        checkpoints.to_resume(tmp_path, {})
    assert "checkpoint-1: not whole (checkpoint.json is not what this version" in said.text


def test_a_folder_that_has_moved_goes_on(words, whole, stopped, tmp_path_factory) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(stopped, moved)
    succeeds(*words, "--output-dir", moved, "--resume")
    assert same(moved, whole)


def test_other_settings_and_rows_are_refused_by_name(words, rows, stopped, tmp_path) -> None:
    other = shutil.copy(rows / "train_validation.jsonl", tmp_path / "other.jsonl")
    for flags, said in (
        (["--learning-rate", "0.5"], "training.learning_rate was 0.01, now 0.5"),
        (["--lora-r", "3"], "lora.rank was 8, now 3"),
        (["--train-data", other], "training rows was"),
    ):
        going_on = ("--output-dir", stopped, "--resume", *flags)
        refused(2, said, *words, *going_on)
        refused(2, said, *words, *going_on, "--dry-run")
    assert "checkpoint-5" in saves(stopped)
    ran = succeeds(*words, "--output-dir", stopped, "--resume", "--dry-run")
    assert "would need" not in ran.err
    ran = succeeds(*words, "--output-dir", stopped, "--dry-run")
    assert "would need --resume or --overwrite" in ran.err
    assert "checkpoint-5" in saves(stopped)


def test_sigterm_is_a_request_too(signals_as_in_a_terminal) -> None:
    from slimtune.training.callbacks import Interruption

    interruption = Interruption()
    with interruption.listening():
        signal.raise_signal(signal.SIGTERM)
        assert interruption.asked
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_run_was_started_to_ignore_does_not_stop_it(
    number, signals_as_in_a_terminal
) -> None:
    """Ctrl-C reaches a script's background jobs, too, and they begin with it ignored."""
    from slimtune.training.callbacks import Interruption

    signal.signal(number, signal.SIG_IGN)
    interruption = Interruption()
    with interruption.listening():
        signal.raise_signal(number)
    assert not interruption.asked and signal.getsignal(number) is signal.SIG_IGN


def test_a_second_ctrl_c_ends_at_once(signals_as_in_a_terminal) -> None:
    from slimtune.training.callbacks import Interruption

    interruption = Interruption()
    with pytest.raises(KeyboardInterrupt), interruption.listening():
        # Not os.kill, which may hand it to another thread: then it is heard some time later.
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked
        signal.raise_signal(signal.SIGTERM)  # launchers pass both on
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_room_for_checkpoints_is_found_out_before_the_first_step(
    words, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    refused(4, "of checkpoints", *words, "--output-dir", tmp_path)


def test_a_distillation_killed_during_a_save(settings, distilled, tmp_path) -> None:
    words = ("knowledge_distillation", *settings, "--output-dir", tmp_path / "out")
    killed(SAVE, not_the_first, *words)
    assert len(partials(tmp_path, "out_checkpoints")) == 1
    succeeds(*words, "--resume")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (distilled / name).read_bytes()
    assert not saves(tmp_path, "out_checkpoints")


def test_a_run_killed_after_its_end_is_not_trained_further(
    words, whole, tmp_path, monkeypatch
) -> None:
    from slimtune.report import model_card
    from slimtune.training.trainer import SlimTrainer

    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patched:
        patched.setattr(
            model_card, "write_model_card", stops
        )  # the last but one thing before the folder is renamed
        assert run(*words, "--output-dir", tmp_path).code == 130
    assert not (tmp_path / "lora_adapter").exists() and saves(tmp_path)
    monkeypatch.setattr(SlimTrainer, "training_step", stops)
    succeeds(*words, "--output-dir", tmp_path, "--resume")
    assert same(tmp_path, whole)


def test_an_adapter_that_changes_nothing_leaves_nothing_behind(words, tmp_path) -> None:
    idle = (*words, "--learning-rate", "1e-30", "--epochs", "1", "--output-dir", tmp_path)
    refused(5, "changes nothing", *idle)
    refused(5, "changes nothing", *idle)  # without --overwrite: nothing was in the way


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distilled_checkpoints", "checkpoints"])
def test_the_whole_path_killed_in_a_training_stage(stage, settings, small_path, tmp_path) -> None:
    words, finished = small_path
    killed(STEP, lambda *_, **__: bool(saves(tmp_path, stage)), *words, "--output-dir", tmp_path)
    assert saves(tmp_path, stage) and not partials(tmp_path, stage)
    succeeds(*words, "--output-dir", tmp_path, "--resume")
    name = "final/model.safetensors"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    assert not saves(tmp_path, stage)


@pytest.fixture(scope="module")
def small_path(settings, distilled, tmp_path_factory) -> tuple[tuple, Path]:
    """The words of a whole path with several saves a stage, and what it ends with."""
    words = ("train_pruned_distilled", *settings, "--evaluations-per-epoch", "2", "--epochs", "2")
    words += ("--stages", "prune,cache,distil,lora,merge")  # the comparison takes the most time
    folder = tmp_path_factory.mktemp("path")
    succeeds(*words, "--output-dir", folder)
    return words, folder
