"""train_lora.py: an adapter that learned, written whole; stopped runs go on; mistakes are told."""

import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from running import another_run_writing, files_under, leaves_nothing, refused, run, succeeds
from safetensors.torch import load_file
from tiny_folders import write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune.config import Config
from slimtune.console import runnable
from slimtune.report.model_card import write_model_card
from slimtune.training import lora
from slimtune.training.callbacks import ProgressShown

QUICK = ("--epochs", 1)


def curve(adapter: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (adapter / "metrics.jsonl").open()]


def validation(adapter: Path) -> list[float]:
    return [entry["eval_loss"] for entry in curve(adapter) if "eval_loss" in entry]


def answer(folder: Path, question: str, adapter: Path | None = None) -> str:
    """What the model says, through transformers and peft alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_adapter_has_learned_to_answer(project, adapter) -> None:
    losses = validation(adapter)
    assert losses[-1] < losses[0] / 10
    base = project / "base"
    assert "cat sat" not in answer(base, "What did the cat do on day 99?")
    assert answer(base, "What did the cat do on day 99?", adapter).strip() == (
        "The cat sat on the mat."
    )


def test_what_is_written_beside_the_adapter(project, adapter) -> None:
    record = json.loads((adapter / "run.json").read_text())
    assert record["stage"] == "train_lora"
    assert record["metrics"]["validation_loss_best"] == pytest.approx(min(validation(adapter)))
    assert record["metrics"]["trainable_parameters"] < record["metrics"]["parameters"] / 5
    rows_run = json.loads((project / "rows/train_run.json").read_text())["run_id"]
    assert rows_run in [one["run_id"] for one in record["inputs"]]
    assert {"loss.png", "tokenizer.model", "chat_template.jinja"} <= set(record["files"])
    assert (adapter / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (adapter.parent / "checkpoints").exists()
    assert not list(adapter.rglob("*.bin")) and not list(adapter.rglob("*.pt"))


def test_the_model_card_says_how_it_was_made_and_how_to_load_it(project, adapter) -> None:
    card = (adapter / "README.md").read_text(encoding="utf-8")
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    told = yaml.safe_load(head)
    assert told["library_name"] == "peft" and told["license"] == "unknown"
    assert "base_model" not in told  # a folder is no model of the Hub
    assert "# LoRA adapter for base" in text and "PeftModel.from_pretrained" in text
    assert '"THE FOLDER OF base"' in text
    for words in ("`lora.rank` | 8", "`validation_loss_best`", "`training_rows` | ", "Licence"):
        assert words in text, words
    assert "](loss.png)" in text and "`rows` | train_train.jsonl" in text


def test_the_model_card_names_no_place_of_this_machine_and_rounds(project, adapter) -> None:
    card = (adapter / "README.md").read_text(encoding="utf-8")
    for place in (project, Path.home(), adapter.parent, Path.cwd()):
        assert str(place) not in card, place
    assert not re.search(r"\d\.\d{6}", card), "figures are rounded"
    assert not re.search(r"[/\\]\w+[/\\]\w+[/\\]", card.replace("https://", "")), "a path"


def test_the_licence_of_the_base_is_the_licence_of_the_card(tmp_path) -> None:
    base, out = tmp_path / "some-base", tmp_path / "out"
    for folder in (base, out):
        folder.mkdir()
    (base / "README.md").write_text(
        "---\nlanguage: en\nlicense: other\nlicense_name: llama3.2\n"
        "license_link: https://a.example/x\n---\n# A model\nlicense: no\n",
        encoding="utf-8",
    )
    write_model_card(out, "meta/some-base", Config(), {"loss": 1 / 3}, {}, base_folder=base)
    head, _, text = (out / "README.md").read_text(encoding="utf-8")[4:].partition("\n---\n")
    told = yaml.safe_load(head)
    assert told["license"] == "other" and told["license_name"] == "llama3.2"
    assert told["base_model"] == "meta/some-base" and told["license_link"].endswith("/x")
    assert "base's licence (llama3.2)" in text and "| `loss` | 0.3333 |" in text
    assert "loss.png" not in text.partition("## Data")[0].partition("metrics.jsonl")[2]


def test_the_learner_has_left_memory_before_it_is_proven(
    settings, rows, tmp_path, monkeypatch
) -> None:
    """The proof loads the base again: both at once would be the peak of the whole stage."""
    learners, attach = [], lora.attach

    def remembered(*given: object, **more: object) -> object:
        model = attach(*given, **more)
        learners.append(weakref.ref(model))
        return model

    def proof(*_: object) -> float:
        assert learners[0]() is None, "the learner is still there"
        return 1.0

    monkeypatch.setattr(lora, "attach", remembered)
    monkeypatch.setattr(lora, "require_effect", proof)
    succeeds("train_lora", *settings, *QUICK, "--output-dir", tmp_path)


def test_flags_only(project, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(rows, "rows")
    ran = succeeds(
        *("train_lora", "--base-model", project / "base"),
        *("--train-data", "rows/train_train.jsonl", "--val-data", "rows/train_validation.jsonl"),
        *("--output-dir", "out", "--epochs", "2", "--batch-size", "4"),
        *("--learning-rate", "5e-3", "--lora-r", "4", "--lora-alpha", "8"),
    )
    config = json.loads(Path("out/lora_adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    losses = validation(Path("out/lora_adapter"))
    assert losses[-1] < losses[0] / 2
    lines = ran.out.splitlines()
    assert lines[0] == "wrote  out/lora_adapter"
    assert "of 133,440 parameters" in ran.out and "validation" in ran.out
    assert lines[-1].startswith(
        f"next:  {runnable('python finetune/evaluate_model.py')} --base-model "
    )
    assert lines[-1].endswith("--lora-model out/lora_adapter")


def test_flags_win_over_the_config(settings, rows, tmp_path) -> None:
    targets = ("--lora-target-modules", "q_proj,v_proj")
    succeeds("train_lora", *settings, *QUICK, *targets, "--output-dir", tmp_path)
    names = load_file(tmp_path / "lora_adapter/adapter_model.safetensors")
    assert {name.split(".lora_")[0].rsplit(".")[-1] for name in names} == {"q_proj", "v_proj"}


def test_four_bits_train_on_a_cpu(settings, adapter, tmp_path) -> None:
    succeeds("train_lora", *settings, "--use-quantization", "--epochs", 2, "--output-dir", tmp_path)
    losses = validation(tmp_path / "lora_adapter")
    assert losses[-1] < losses[0] / 1.5
    assert losses[0] != validation(adapter)[0]  # before the first step: what rounding costs


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_all_weights_learn_into_an_ordinary_model_folder(settings, rows, project, tmp_path) -> None:
    words = ("--method", "full", "--learning-rate", "2e-3", "--output-dir", tmp_path)
    ran = succeeds("train_lora", *settings, *words)
    model = tmp_path / "full_model"
    assert "all 125,248 parameters" in ran.out
    assert f"--models {model}" in ran.out and not (tmp_path / "checkpoints").exists()
    assert validation(model)[-1] < validation(model)[0] / 10
    assert answer(model, "What did the cat do on day 99?").strip() == "The cat sat on the mat."
    assert {"run.json", "tokenizer.model", "chat_template.jinja", "loss.png"} <= set(
        path.name for path in model.iterdir()
    )
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "all weights fine-tuned" in card and "PeftModel" not in card
    before, after = (
        load_file(folder / "model.safetensors") for folder in (project / "base", model)
    )
    assert all(after[name].dtype == weight.dtype for name, weight in before.items())
    assert all((after[name] != weight).any() for name, weight in before.items())
    csv = tmp_path / "results.csv"
    flags = ("--lora-model", "null", "--models", model, "--output", csv)
    succeeds("evaluate_model", *settings, *flags)
    metrics = json.loads((tmp_path / "results_metrics.json").read_text())
    assert "full_model" in json.dumps(metrics)
    flags = ("--model-path", model, "--output-dir", tmp_path / "gguf")
    succeeds("convert_to_gguf", *settings, *flags)


def test_an_adapters_learning_rate_for_all_weights_is_pointed_out(
    settings, rows, tmp_path, caplog
) -> None:
    words = ("--method", "full", "--epochs", "0.1", "--output-dir", tmp_path)
    succeeds("train_lora", *settings, *words)
    assert "--learning-rate 0.01 is far off: 0.001 is usual for all weights of" in caplog.text


def one_row(folder: Path, rows: Path) -> Path:
    """The first training row alone, without validation rows beside it."""
    file = folder / "alone.jsonl"
    file.write_text((rows / "train_train.jsonl").read_text("utf-8").splitlines()[0], "utf-8")
    return file


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_row_and_one_step_teach_something(method, settings, rows, project, tmp_path) -> None:
    words = ("--train-data", one_row(tmp_path, rows), "--epochs", 1, "--method", method)
    succeeds("train_lora", *settings, *words, "--output-dir", tmp_path / "out")
    (folder,) = (tmp_path / "out").glob("[!.]*")
    record = json.loads((folder / "run.json").read_text())
    assert record["metrics"]["steps"] == 1
    if method == "full":
        before, after = (load_file(one / "model.safetensors") for one in (project / "base", folder))
        assert any((after[name] != before[name]).any() for name in before)
        assert 0 < record["metrics"]["changed_weights"] <= 1


def test_all_weights_that_stay_as_they_were_are_no_result(settings, rows, tmp_path) -> None:
    words = (*settings, "--method", "full", "--epochs", 1, "--output-dir", tmp_path)
    error = refused(5, "changes nothing", "train_lora", *words, "--learning-rate", "1e-12")
    assert "stored as bfloat16" in error[1] and "learning rate of 1e-12" in error[1]
    assert "raise --learning-rate (auto is 0.001)" in error[2]
    assert leaves_nothing(tmp_path)


def test_auto_is_the_usual_rate_and_recorded(settings, rows, tmp_path, caplog) -> None:
    caplog.set_level("INFO", logger="slimtune")
    words = ("--learning-rate", "auto", "--output-dir", tmp_path)
    succeeds("train_lora", *settings, *QUICK, *words)
    record = json.loads((tmp_path / "lora_adapter/run.json").read_text())
    found = record["settings"]["training"]
    assert (found["learning_rate"], found["batch_size"]) == (4e-3, 16)
    assert found["activation_checkpointing"] is False
    assert "learning rate auto: 0.004, usual for an adapter on 0.1 M parameters" in caplog.text


def test_loftq_on_four_bits(settings, rows, tmp_path) -> None:
    words = ("--use-quantization", "--lora-init", "loftq", *QUICK, "--output-dir", tmp_path)
    succeeds("train_lora", *settings, *words)
    config = json.loads((tmp_path / "lora_adapter/adapter_config.json").read_text())
    assert config["r"] == 16 and config["init_lora_weights"] is True


def test_a_missing_package_is_told_before_anything_is_loaded(
    settings, rows, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for flags in (["--optimizer", "adamw_8bit"], ["--optimizer", "lion_32bit", "--dry-run"]):
        words = ("train_lora", *settings, *flags, "--output-dir", tmp_path / "out")
        refused(4, "needs bitsandbytes", *words)
    assert leaves_nothing(tmp_path)


def test_without_validation_rows_the_last_step_is_kept(settings, rows, tmp_path) -> None:
    alone = shutil.copy(rows / "train_train.jsonl", tmp_path / "alone.jsonl")
    words = ("--train-data", alone, "--output-dir", tmp_path / "out")
    succeeds("train_lora", *settings, *QUICK, *words)
    record = json.loads((tmp_path / "out/lora_adapter/run.json").read_text())
    assert record["metrics"]["validation_loss_best"] is None


def test_a_dry_run_estimates_and_writes_nothing(settings, rows, tmp_path) -> None:
    ran = succeeds("train_lora", *settings, "--output-dir", tmp_path / "out", "--dry-run")
    for words in ("would write", "training_rows: ", "tokens_per_epoch: ", "trainable: ", "memory:"):
        assert words in ran.out
    assert "steps: " in ran.out and "largest batch that fits: " in ran.out
    assert list(tmp_path.iterdir()) == []


def test_auto_settles_on_a_batch_that_is_recorded(settings, rows, tmp_path) -> None:
    words = ("--batch-size", "auto", "--gradient-accumulation-steps", 1)
    succeeds("train_lora", *settings, *QUICK, *words, "--output-dir", tmp_path)
    record = json.loads((tmp_path / "lora_adapter/run.json").read_text())
    assert record["settings"]["training"]["batch_size"] == 16


def test_a_finished_adapter_is_replaced_only_with_overwrite(settings, rows, tmp_path) -> None:
    words = ("train_lora", *settings, *QUICK, "--output-dir", tmp_path)
    succeeds(*words)
    before = files_under(tmp_path)
    refused(2, "--overwrite", *words, "--lora-r", 2)
    assert files_under(tmp_path) == before
    succeeds(*words, "--lora-r", 2, "--overwrite")
    config = json.loads((tmp_path / "lora_adapter/adapter_config.json").read_text())
    assert config["r"] == 2 and not list(tmp_path.glob("*.old"))


def test_a_stopped_run_goes_on_to_the_same_adapter(
    settings, adapter, tmp_path, monkeypatch
) -> None:
    def stop(self, args, state, control, logs=None, **kwargs) -> None:
        if state.global_step == 9:
            raise KeyboardInterrupt

    words = ("train_lora", *settings, "--output-dir", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ProgressShown, "on_log", stop)
        assert run(*words).code == 130
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["checkpoints"]
    refused(2, "--resume", *words)
    steps = []
    monkeypatch.setattr(
        ProgressShown, "on_log", lambda self, args, state, *_, **__: steps.append(state.global_step)
    )
    succeeds(*words, "--resume")
    assert min(steps) == 9
    name = "adapter_model.safetensors"
    ours, theirs = load_file(tmp_path / "lora_adapter" / name), load_file(adapter / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not (tmp_path / "checkpoints").exists()


def test_a_start_that_moves_the_base_is_the_same_after_a_stop(
    settings, rows, tmp_path, monkeypatch
) -> None:
    def stop(self, args, state, control, logs=None, **kwargs) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    words = ("train_lora", *settings, "--lora-init", "pissa", "--epochs", 1)
    succeeds(*words, "--output-dir", tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(ProgressShown, "on_log", stop)
        assert run(*words, "--output-dir", tmp_path / "stopped").code == 130
    succeeds(*words, "--output-dir", tmp_path / "stopped", "--resume")
    ours, theirs = (
        load_file(tmp_path / name / "lora_adapter/adapter_model.safetensors")
        for name in ("stopped", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        (3, ["--train-data", "nowhere.jsonl"], "nowhere.jsonl: not there"),
        (3, ["--val-data", "nowhere.jsonl"], "nowhere.jsonl"),
        (3, ["--base-model", "./nowhere"], "nowhere"),
        (2, ["--lora-target-modules", "q_porj"], "its linear layers are down_proj, gate_proj"),
        (2, ["--lora-target-modules", "q_porj,q_proj"], "lora.target_modules: q_porj"),
        (2, ["--max-length", "40"], "rows are longer than 40 tokens"),
        (2, ["--dtype", "float16"], "float16 on a CPU"),
        (2, ["--method", "full", "--use-quantization"], "full on a quantised base"),
        (2, ["--dora", "true", "--use-quantization", "int8"], "on a base in 8 bits"),
        (2, ["--lora-init", "loftq"], "loftq without quantisation"),
        (2, ["--lora-init", "pissa", "--use-quantization"], "pissa on a quantised base"),
    ],
)
def test_bad_input_is_refused(code, flags, words, settings, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(code, words, "train_lora", *settings, *flags, "--output-dir", "out")
    assert leaves_nothing(tmp_path)


def test_a_run_that_diverges_leaves_no_adapter(settings, rows, tmp_path) -> None:
    flags = ("--learning-rate", "1e30", "--output-dir", tmp_path)
    refused(5, "not a finite number", "train_lora", *settings, *flags)
    assert not list(tmp_path.glob("lora_adapter*"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--lora-target-modules", "q_proj,q_porj"],
        ["--dtype", "float16"],
        ["--method", "full", "--use-quantization"],
        ["--lora-init", "loftq"],
    ],
)
def test_a_dry_run_finds_the_mistake_too(flags, settings, rows, tmp_path) -> None:
    refused(2, "", "train_lora", *settings, *flags, "--output-dir", tmp_path, "--dry-run")


def test_a_row_without_output_is_named_with_its_line(settings, rows, tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = (rows / "train_train.jsonl").read_text().splitlines()
    lines[2] = '{"instruction": "What?", "input": ""}'
    file.write_text("\n".join(lines))
    refused(
        *(3, "rows.jsonl:3", "train_lora", *settings),
        *("--train-data", file, "--output-dir", tmp_path / "out"),
    )
    assert leaves_nothing(tmp_path / "out")


def test_a_base_without_weights_and_an_adapter_as_base(settings, adapter, tmp_path) -> None:
    empty = write_tiny_llama(tmp_path / "empty", hidden=64)
    (empty / "model.safetensors").unlink()
    for base, words in ((empty, "no weights"), (adapter, "LoRA adapter, not a model")):
        flags = ("--base-model", base, "--output-dir", tmp_path / "out")
        refused(3, words, "train_lora", *settings, *flags)
    assert leaves_nothing(tmp_path / "out")


def test_rows_changed_since_they_were_prepared(settings, rows, tmp_path) -> None:
    changed = shutil.copytree(rows, tmp_path / "rows")
    with (changed / "train_train.jsonl").open("a") as file:
        file.write("\n")
    flags = ("--train-data", changed / "train_train.jsonl", "--output-dir", tmp_path / "out")
    refused(3, "not as prepare_data left it", "train_lora", *settings, *flags)
    assert leaves_nothing(tmp_path / "out")


def test_an_adapter_that_another_run_is_writing(settings, rows, tmp_path) -> None:
    with another_run_writing(tmp_path / "lora_adapter"):
        refused(6, "another run", "train_lora", *settings, "--output-dir", tmp_path)
    assert leaves_nothing(tmp_path)
