"""train_pruned_distilled.py: all stages in one run, none twice, a small model at the end."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from running import another_run_writing, files_under, leaves_nothing, refused, run, succeeds
from safetensors.torch import load_file
from tiny_folders import swap_two_tokens, write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune.training import stages

STAGES = ("pruned", "distilled", "lora_adapter", "final")


@pytest.fixture(scope="module")
def small(project, settings, merged) -> Path:
    succeeds("train_pruned_distilled", *settings)
    return project / "small"


def records(folder: Path) -> dict[str, dict]:
    return {
        stage: json.loads((folder / stage / "run.json").read_text())
        for stage in STAGES
        if (folder / stage / "run.json").is_file()
    }


def test_the_final_model_is_small_and_answers(project, small) -> None:
    base = AutoModelForCausalLM.from_pretrained(project / "base")
    final = AutoModelForCausalLM.from_pretrained(small / "final", dtype=torch.float32)
    assert final.num_parameters() < base.num_parameters()
    assert final.config.intermediate_size == 96
    tokenizer = AutoTokenizer.from_pretrained(small / "final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "第77天天气怎么样？"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    said = final.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    answer = tokenizer.decode(said[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() == "今天天气很好。"


def test_every_stage_is_an_output_of_its_own(small) -> None:
    runs = records(small)
    assert [run["stage"] for run in runs.values()] == [
        "model_pruning",
        "knowledge_distillation",
        "train_lora",
        "train_pruned_distilled",
    ]
    ids = {stage: run["run_id"] for stage, run in runs.items()}
    inputs = {stage: {one["run_id"] for one in run["inputs"]} for stage, run in runs.items()}
    assert ids["pruned"] in inputs["distilled"] and ids["distilled"] in inputs["lora_adapter"]
    assert {ids["distilled"], ids["lora_adapter"]} <= inputs["final"]
    losses = runs["final"]["metrics"]["losses"]
    assert losses["validation loss, lora_adapter"] < losses["validation loss, distilled"]
    assert not (small / "checkpoints").exists()


def test_the_final_model_is_the_distilled_one_with_the_adapter(small) -> None:
    pruned, distilled, final = (
        load_file(small / stage / "model.safetensors") for stage in ("pruned", "distilled", "final")
    )
    untouched, adapted = "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(final[untouched], distilled[untouched])
    assert not torch.equal(final[untouched], pruned[untouched])
    assert not torch.equal(final[adapted], distilled[adapted])


def test_flags_only(project, merged, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = succeeds(
        *("train_pruned_distilled", "--base-model", project / "base", "--teacher-model", merged),
        *("--train-data", rows / "train_train.jsonl", "--text-data", "null", "--epochs", 1),
        *("--output-dir", "out", "--cache-dir", "cache", "--ffn-ratio", 0.5, "--lora-r", 2),
        *("--distillation-epochs", 1, "--device", "cpu", "--max-length", 128),
    )
    assert "wrote  out/final\n" in ran.out and "validation loss, lora_adapter: " in ran.out
    assert ran.out.endswith("convert_to_gguf.py --model-path out/final\n")
    assert AutoModelForCausalLM.from_pretrained("out/final").config.intermediate_size == 64
    assert json.loads(Path("out/lora_adapter/adapter_config.json").read_text())["r"] == 2


def test_a_dry_run_estimates_and_writes_nothing(settings, merged, tmp_path) -> None:
    out = tmp_path / "out"
    ran = succeeds("train_pruned_distilled", *settings, "--output-dir", out, "--dry-run")
    for said in ("distilled\n", "lora_adapter\n", "final\n", "FFN neurons a layer: 128 -> 96"):
        assert said in ran.out
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_replaced_only_with_overwrite(settings, small, tmp_path) -> None:
    out = shutil.copytree(small, tmp_path / "out")
    words = ("train_pruned_distilled", *settings, "--output-dir", out)
    before = files_under(out)
    refused(2, "--overwrite", *words)
    assert files_under(out) == before
    flags = ("--ffn-ratio", 0.5, "--epochs", 1, "--distillation-epochs", 1, "--overwrite")
    succeeds(*words, *flags)
    assert AutoModelForCausalLM.from_pretrained(out / "final").config.intermediate_size == 64
    assert not {r["run_id"] for r in records(out).values()} & {
        r["run_id"] for r in records(small).values()
    }


def test_a_stopped_run_goes_on_at_that_stage(settings, merged, tmp_path, monkeypatch) -> None:
    def stop(*args, **kwargs) -> None:
        raise KeyboardInterrupt

    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path)
    words += ("--epochs", 2, "--distillation-epochs", 1)
    with monkeypatch.context() as patched:
        patched.setattr(stages, "train_adapter", stop)
        assert run(*words).code == 130
    stopped = records(tmp_path)
    assert list(stopped) == ["pruned", "distilled"]
    refused(2, "exists already", *words)
    assert records(tmp_path) == stopped
    ran = succeeds(*words, "--resume")
    assert "pruned: finished already" in ran.err and "lora_adapter: starting" in ran.err
    assert {stage: records(tmp_path)[stage] for stage in stopped} == stopped
    assert list(records(tmp_path)) == list(STAGES)


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        (3, ["--base-model", "./nowhere"], "nowhere: not there"),
        (3, ["--teacher-model", "./nowhere"], "nowhere: not there"),
        (3, ["--train-data", "nowhere.jsonl"], "nowhere.jsonl: not there"),
        (3, ["--teacher-model", "other"], "different vocabularies"),
        (2, ["--ffn-ratio", "0.01"], "leaves all of 128 neurons"),
        (2, ["--lora-target-modules", "q_porj"], "lora.target_modules: q_porj"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_mistakes_are_told_before_the_first_stage(
    code, flags, words, dry, settings, merged, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    swap_two_tokens(write_tiny_llama(tmp_path / "other", hidden=64))
    flags = (*settings, *flags, *dry, "--output-dir", "out")
    refused(code, words, "train_pruned_distilled", *flags)
    assert leaves_nothing(tmp_path / "out")


def test_a_stage_that_another_run_is_writing(settings, merged, tmp_path) -> None:
    with another_run_writing(tmp_path / "pruned"):
        refused(6, "another run", "train_pruned_distilled", *settings, "--output-dir", tmp_path)
    assert leaves_nothing(tmp_path)
