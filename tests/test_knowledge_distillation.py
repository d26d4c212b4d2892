"""knowledge_distillation.py: the student loses less on rows kept aside; the teacher runs once."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from running import another_run_writing, files_under, leaves_nothing, refused, run, succeeds
from tiny_folders import swap_two_tokens, write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune import prompts
from slimtune.training import teacher_cache
from slimtune.training.progress import ProgressShown

QUICK = ("--epochs", 1)


def words_for(folder: Path) -> tuple:
    """Output and cache in the test's own folder."""
    return "--output-dir", folder / "out", "--cache-dir", folder / "cache"


def loss(model_folder: Path, file: Path) -> float:
    """Nats per answer token, by transformers' own loss."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    template = prompts.template("llama2")
    total, count = 0.0, 0
    for line in file.open(encoding="utf-8"):
        row = prompts.encode(tokenizer, json.loads(line)["messages"], template)
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        supervised = int((labels[0, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * supervised
        count += supervised
    return total / count


def test_the_student_wins_back_what_pruning_cost(merged, pruned, distilled, rows) -> None:
    test = rows / "train_test.jsonl"
    teacher, before, after = (loss(folder, test) for folder in (merged, pruned, distilled))
    assert teacher < before
    assert before - after > 0.7 * (before - teacher)


def test_the_student_keeps_its_shape_and_type(pruned, distilled) -> None:
    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (pruned, distilled))
    assert after.config.intermediate_size == 96 and after.dtype == before.dtype == torch.bfloat16
    assert after.num_parameters() == before.num_parameters()
    assert (distilled / "tokenizer.model").is_file()


def test_what_is_written_beside_the_student(project, merged, pruned, distilled) -> None:
    run = json.loads((distilled / "run.json").read_text())
    inputs = {Path(one["path"]).name for one in run["inputs"]}
    assert {"pruned", "merged_model", "train_train.jsonl"} <= inputs
    assert run["metrics"]["text_passages"] == 3
    curve = [json.loads(line) for line in (distilled / "metrics.jsonl").open()]
    validation = [entry["eval_loss"] for entry in curve if "eval_loss" in entry]
    assert min(validation) == pytest.approx(run["metrics"]["validation_loss_best"])
    assert min(validation) < validation[0]
    assert all({"kd", "ce"} <= entry.keys() for entry in curve if "loss" in entry)
    metrics, evaluations = run["metrics"], [e["eval_ce"] for e in curve if "eval_ce" in e]
    assert metrics["perplexity_before"] == pytest.approx(math.exp(evaluations[0]), abs=1e-3)
    assert metrics["perplexity_after"] < metrics["perplexity_before"]
    assert len(list((project / "cache").glob("*/cache.json"))) == 1
    assert not list(project.glob("*_checkpoints"))


def test_flags_only(merged, pruned, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = succeeds(
        *("knowledge_distillation", "--teacher-model", merged, "--student-model", pruned),
        *("--train-data", rows / "train_train.jsonl", "--text-data", "null", "--epochs", 1),
        *("--output-dir", "out", "--cache-dir", "cache", "--device", "cpu"),
    )
    lines = ran.out.splitlines()
    assert lines[0] == "wrote  out" and "validation" in ran.out and " -> " in lines[3]
    assert lines[-1] == f"next:  python finetune/evaluate_model.py --models {pruned},out"
    assert json.loads(Path("out/run.json").read_text())["metrics"]["text_passages"] == 0


def test_the_teacher_is_asked_once(settings, pruned, tmp_path, monkeypatch) -> None:
    words = ("knowledge_distillation", *settings, *QUICK, *words_for(tmp_path))
    succeeds(*words)

    def never(*args, **kwargs) -> None:
        raise AssertionError("the teacher ran again")

    monkeypatch.setattr(teacher_cache, "write", never)
    succeeds(*words, "--overwrite", "--learning-rate", "5e-4", "--alpha", "0.9")
    assert run(*words, "--overwrite", "--top-k", 4).code == 1


def test_a_dry_run_estimates_and_writes_nothing(settings, pruned, tmp_path) -> None:
    words = ("knowledge_distillation", *settings, *words_for(tmp_path), "--dry-run")
    ran = succeeds(*words)
    for said in ("would write", "text passages: 3", "training_rows: ", "memory: "):
        assert said in ran.out
    assert list(tmp_path.iterdir()) == []


def test_a_finished_student_is_replaced_only_with_overwrite(settings, pruned, tmp_path) -> None:
    words = ("knowledge_distillation", *settings, *QUICK, *words_for(tmp_path))
    succeeds(*words)
    before = files_under(tmp_path)
    refused(2, "--overwrite", *words)
    assert files_under(tmp_path) == before
    succeeds(*words, "--epochs", 2, "--overwrite")
    after = files_under(tmp_path)
    assert after["out/model.safetensors"] != before["out/model.safetensors"]


def test_a_stopped_run_goes_on_to_the_same_student(
    settings, distilled, tmp_path, monkeypatch
) -> None:
    def stop(self, args, state, control, logs=None, **kwargs) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt

    words = ("knowledge_distillation", *settings, *words_for(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(ProgressShown, "on_log", stop)
        assert run(*words).code == 130
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    refused(2, "--resume", *words)
    steps = []
    monkeypatch.setattr(
        ProgressShown, "on_log", lambda self, args, state, *_, **__: steps.append(state.global_step)
    )
    succeeds(*words, "--resume")
    assert min(steps) > 1
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (distilled / name).read_bytes()


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        (3, ["--teacher-model", "./nowhere"], "nowhere: not there"),
        (3, ["--student-model", "./nowhere"], "nowhere: not there"),
        (3, ["--train-data", "nowhere.jsonl"], "nowhere.jsonl: not there"),
        (3, ["--text-data", "nowhere.txt"], "nowhere.txt: not there"),
        (3, ["--student-model", "empty"], "no weights"),
        (3, ["--teacher-model", "empty"], "no weights"),
        (5, ["--learning-rate", "1e-30"], "made the student worse"),
    ],
)
def test_bad_input_is_refused(code, flags, words, settings, pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pruned, "empty", ignore=shutil.ignore_patterns("*.safetensors", "run.json"))
    refused(code, words, "knowledge_distillation", *settings, *flags, *words_for(tmp_path))
    assert leaves_nothing(tmp_path / "out")
    assert {path.name for path in tmp_path.glob("[!.]*")} <= {"empty", "cache"}


@pytest.mark.parametrize("option", ["--dry-run", "--overwrite"])
def test_a_teacher_with_another_vocabulary(option, settings, pruned, tmp_path) -> None:
    teacher = swap_two_tokens(write_tiny_llama(tmp_path / "teacher", hidden=64))
    flags = ("--teacher-model", teacher, *words_for(tmp_path), option)
    refused(3, "different vocabularies", "knowledge_distillation", *settings, *flags)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["teacher"]


def test_a_student_that_another_run_is_writing(settings, pruned, tmp_path) -> None:
    with another_run_writing(tmp_path / "out"):
        words = ("knowledge_distillation", *settings, *words_for(tmp_path))
        refused(6, "another run", *words)
    assert leaves_nothing(tmp_path)


def test_the_model_card_names_teacher_and_figures(distilled) -> None:
    card = (distilled / "README.md").read_text(encoding="utf-8")
    figures = json.loads((distilled / "run.json").read_text())["metrics"]
    assert "taught by" in card and "merged_model" in card and "`distillation.alpha`" in card
    assert f"| `perplexity_after` | {figures['perplexity_after']} |" in card
    assert "PeftModel" not in card
