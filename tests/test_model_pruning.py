"""model_pruning.py: the strongest neurons stay, in a smaller and ordinary model."""

import json
import shutil

import pytest
import torch
from running import another_run_writing, files_under, leaves_nothing, refused, succeeds
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

WEIGHTS = "model.safetensors"


def test_the_pruned_model_is_smaller_and_ordinary(merged, pruned) -> None:
    before = AutoModelForCausalLM.from_pretrained(merged)
    after = AutoModelForCausalLM.from_pretrained(pruned)
    assert (before.config.intermediate_size, after.config.intermediate_size) == (128, 96)
    assert after.num_parameters() == before.num_parameters() - 2 * 32 * 64 * 3
    assert (pruned / WEIGHTS).stat().st_size < (merged / WEIGHTS).stat().st_size
    tokenizer = AutoTokenizer.from_pretrained(pruned)
    ids = tokenizer("The cat sat", return_tensors="pt").input_ids
    with torch.no_grad():
        assert not torch.equal(after(ids).logits, before(ids).logits)


def test_the_neurons_that_stay_are_those_with_the_largest_norms(merged, pruned) -> None:
    before, after = load_file(merged / WEIGHTS), load_file(pruned / WEIGHTS)
    for layer in range(2):
        names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
        gate, up, down = (before[name].float() for name in names)
        strength = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
        kept = strength.topk(96).indices.sort().values
        assert torch.equal(after[names[0]], before[names[0]][kept])
        assert torch.equal(after[names[2]], before[names[2]][:, kept])


def test_the_record_leads_back_to_the_model(merged, pruned) -> None:
    run = json.loads((pruned / "run.json").read_text())
    assert run["metrics"]["parameters_after"] < run["metrics"]["parameters_before"]
    before = json.loads((merged / "run.json").read_text())
    assert [one["run_id"] for one in run["inputs"]] == [before["run_id"]]
    assert "tokenizer.model" in run["files"]


def test_flags_only(merged, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--model-path", merged, "--output-dir", "out", "--ffn-ratio", 0.5)
    ran = succeeds("model_pruning", *flags)
    assert "wrote  out\n" in ran.out and "FFN neurons a layer: 128 -> 64" in ran.out
    assert ran.out.splitlines()[-1] == (
        "next:  python finetune/knowledge_distillation.py --student-model out"
    )
    assert AutoModelForCausalLM.from_pretrained("out").config.intermediate_size == 64


def test_flags_win_over_the_config(settings, pruned, tmp_path) -> None:
    for seed in (1, 2):
        flags = ("--criterion", "random", "--seed", seed, "--output-dir", tmp_path / str(seed))
        succeeds("model_pruning", *settings, *flags)
    one, two = (tmp_path / seed / WEIGHTS for seed in "12")
    assert one.read_bytes() != two.read_bytes()
    assert one.read_bytes() != (pruned / WEIGHTS).read_bytes()


def test_a_dry_run_estimates_and_writes_nothing(settings, merged, tmp_path) -> None:
    ran = succeeds("model_pruning", *settings, "--output-dir", tmp_path / "out", "--dry-run")
    assert "would write" in ran.out and "FFN neurons a layer: 128 -> 96" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_a_finished_model_is_replaced_only_with_overwrite(settings, merged, tmp_path) -> None:
    words = ("model_pruning", *settings, "--output-dir", tmp_path / "out")
    succeeds(*words)
    before = files_under(tmp_path)
    refused(2, "--overwrite", *words, "--ffn-ratio", 0.5)
    assert files_under(tmp_path) == before
    succeeds(*words, "--ffn-ratio", 0.5, "--overwrite")
    assert len(files_under(tmp_path)["out/model.safetensors"]) < len(before["out/" + WEIGHTS])


def test_a_folder_of_the_user_is_not_overwritten(settings, merged, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    words = ("model_pruning", *settings, "--output-dir", tmp_path)
    refused(2, "no stage of SlimTune wrote", *words)
    assert files_under(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        (3, ["--model-path", "./nowhere"], "nowhere: not there"),
        (3, ["--model-path", "notes.txt"], "notes.txt"),
        (3, ["--model-path", "empty"], "no weights"),
        (2, ["--ffn-ratio", "0.01"], "leaves all of 128 neurons"),
        (2, ["--ffn-ratio", "1"], "1 is no pruning.ffn_ratio"),
        (2, ["--criterion", "taste"], "taste is no pruning.criterion"),
    ],
)
def test_bad_input_is_refused(code, flags, words, settings, merged, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    refused(code, words, "model_pruning", *settings, *flags, "--output-dir", "out")
    assert leaves_nothing(tmp_path / "out") and not list(tmp_path.glob("*.partial"))


def test_an_adapter_is_told_how_to_become_a_model(settings, adapter, tmp_path) -> None:
    flags = ("--model-path", adapter, "--output-dir", tmp_path / "out")
    refused(3, "--merge", "model_pruning", *settings, *flags)
    assert leaves_nothing(tmp_path)


def test_weights_damaged_since_they_were_written(settings, merged, tmp_path) -> None:
    damaged = shutil.copytree(merged, tmp_path / "merged_model")
    with (damaged / WEIGHTS).open("r+b") as file:
        file.seek(-100, 2)
        file.write(bytes(100))
    flags = ("--model-path", damaged, "--output-dir", tmp_path / "out")
    error = refused(3, "not as merge left it", "model_pruning", *settings, *flags)
    assert "evaluate_model.py --merge" in error[2]
    assert leaves_nothing(tmp_path / "out")


def test_a_model_whose_stage_did_not_finish(settings, merged, tmp_path) -> None:
    partial = shutil.copytree(merged, tmp_path / "merged_model.partial")
    for path in (partial, tmp_path / "merged_model"):
        flags = ("--model-path", path, "--output-dir", tmp_path / "out")
        refused(3, "did not finish", "model_pruning", *settings, *flags)


def test_a_model_that_another_run_is_writing(settings, merged, tmp_path) -> None:
    with another_run_writing(tmp_path / "out"):
        refused(6, "another run", "model_pruning", *settings, "--output-dir", tmp_path / "out")
    assert leaves_nothing(tmp_path)
