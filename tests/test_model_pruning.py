"""model_pruning.py: the strongest neurons stay, in a smaller and ordinary model."""

import json
import math
import shutil

import pytest
import torch
from running import another_run_writing, files_under, leaves_nothing, refused, succeeds
from safetensors.torch import load_file, save_file
from tiny_folders import write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune.console import runnable

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


def test_streamed_without_data_the_neurons_with_the_largest_norms_stay(
    settings, merged, tmp_path
) -> None:
    flags = ("--criterion", "magnitude", "--calibration", "none", "--output-dir", tmp_path / "out")
    succeeds("model_pruning", *settings, *flags)
    before, after = load_file(merged / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    for layer in range(2):
        names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
        gate, up, down = (before[name].float() for name in names)
        strength = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
        kept = strength.topk(96).indices.sort().values
        assert torch.equal(after[names[0]], before[names[0]][kept])
        assert torch.equal(after[names[2]], before[names[2]][:, kept])


def test_with_prepared_rows_it_stays_nearer_to_the_model_than_by_chance(
    settings, rows, pruned, tmp_path
) -> None:
    run = json.loads((pruned / "run.json").read_text())["metrics"]
    before = run["perplexity_before"]
    assert run["calibration"] == "rows" and run["difference"] < 1e-2
    flags = ("--criterion", "random", "--refit", "false")
    succeeds("model_pruning", *settings, *flags, "--output-dir", tmp_path / "out")
    by_chance = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]
    # The tiny model has learned too little for a cut to make it worse: how near it stays counts.
    near, far = (abs(math.log(one["perplexity_after"] / before)) for one in (run, by_chance))
    assert near < far / 2
    card = (pruned / "pruning_card.md").read_text()
    assert f"{run['perplexity_after']:.2f}" in card and "| FFN neurons a layer | 128 | 96 |" in card
    (said,) = run["rounded"]
    assert said.startswith("ffn_ratio 0.33 became 0.250: 96 of 128") and f"- {said}\n" in card
    assert card.startswith("# merged_model, pruned\n")  # without a folder of this machine
    told = "on rows kept back from it. A pruned model"
    assert told in card and told in (pruned / "README.md").read_text(encoding="utf-8")
    assert not (pruned / "scratch").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--kv-group-ratio", 0.5],
        ["--ffn-ratio", 0, "--layer-ratio", 0.5, "--calibration", "self"],
        ["--ffn-ratio", 0, "--hidden-ratio", 0.5],
        ["--layer-ratio", 0.5, "--recover", "blocks", "--recovery-epochs", 1],
        ["--ffn-ratio", 0.6, "--criterion", "taylor"],
        ["--target-params", "100k", "--criterion", "magnitude"],
        ["--sparsity", 0.5],
        ["--sparsity", 0.5, "--sparsity-pattern", "2:4", "--sparsity-method", "magnitude"],
    ],
)
def test_every_axis_gives_a_folder_that_loads_and_speaks(flags, settings, merged, tmp_path) -> None:
    few = ("--calibration-rows", 16, "--calibration-length", 32)
    succeeds("model_pruning", *settings, *flags, *few, "--output-dir", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]
    assert model.num_parameters() == run["parameters_after"]
    assert run["parameters_after"] < run["parameters_before"] or "--sparsity" in flags
    assert run["proven"] and all(found < 1e-2 for found in run["proven"].values())
    assert run["difference"] == max(run["proven"].values())
    said = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=4, do_sample=False)
    assert said.shape[1] > 3


def test_the_record_leads_back_to_the_model(merged, pruned) -> None:
    run = json.loads((pruned / "run.json").read_text())
    assert run["metrics"]["parameters_after"] < run["metrics"]["parameters_before"]
    before = json.loads((merged / "run.json").read_text())
    assert [one["run_id"] for one in run["inputs"]] == [before["run_id"]]
    assert "tokenizer.model" in run["files"]


def test_flags_only(merged, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--model-path", merged, "--output-dir", "out", "--ffn-ratio", 0.5)
    flags += ("--calibration-rows", 16)
    ran = succeeds("model_pruning", *flags)
    assert "wrote  out\n" in ran.out and "FFN neurons a layer" in ran.out
    assert ran.out.splitlines()[-1] == (
        f"next:  {runnable('python finetune/knowledge_distillation.py')} --student-model out"
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
    assert "rounded: ffn_ratio 0.33 became 0.250: 96 of 128 are left, a multiple of 32\n" in ran.out
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


def _bad_models(merged, folder) -> None:
    (folder / "pickled").mkdir()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"")
    for name, change in (
        ("quantised", {"quantization_config": {}}),
        ("strange", None),
        ("nan", {}),
    ):
        shutil.copytree(merged, folder / name, ignore=shutil.ignore_patterns("run.json"))
        config = json.loads((folder / name / "config.json").read_text())
        config |= {"model_type": "gpt2"} if change is None else change
        (folder / name / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "nan" / WEIGHTS)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "nan" / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        (3, ["--model-path", "./nowhere"], "nowhere: not there"),
        (3, ["--model-path", "notes.txt"], "notes.txt"),
        (3, ["--model-path", "empty"], "no weights"),
        (2, ["--ffn-ratio", "0.01"], "leaves all of 128 neurons"),
        (2, ["--ffn-ratio", "1"], "1 is no pruning.ffn_ratio"),
        (2, ["--ffn-ratio", "0"], "every ratio is 0"),
        (2, ["--kv-group-ratio", "0.1"], "leaves all of 2 KV groups"),
        (2, ["--layer-ratio", "0.1"], "leaves all of 2 layers"),
        (2, ["--target-params", "9B"], "cannot be reached"),
        (2, ["--target-params", "few"], "few is no pruning.target_params"),
        (2, ["--calibration", "none"], "pruning.calibration: none"),
        (3, ["--model-path", "pickled"], "pickle"),
        (3, ["--model-path", "quantised"], "quantised weights"),
        (3, ["--model-path", "nan"], "NaN or infinity"),
        (3, ["--model-path", "strange"], "model_type is 'gpt2'"),
        (2, ["--recover", "blocks", "--sparsity", "0.5"], "pruning.recover: blocks"),
        (2, ["--recover", "blocks", "--ffn-ratio", "0", "--vocabulary", "trim"], "nothing is cut"),
        (2, ["--recover", "blocks", "--criterion", "random", "--calibration", "none"], "rows"),
        (2, ["--criterion", "taste"], "taste is no pruning.criterion"),
    ],
)
def test_bad_input_is_refused(code, flags, words, settings, merged, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    _bad_models(merged, tmp_path)
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


@pytest.mark.parametrize(
    "flags",
    [
        ["--ffn-ratio", 0.25, "--kv-group-ratio", 0.5],
        ["--ffn-ratio", 0, "--layer-ratio", 0.5],
        ["--ffn-ratio", 0, "--hidden-ratio", 0.5],  # 32 channels, 4 heads of 16
    ],
    ids=["width", "layers", "hidden"],
)
def test_llama_cpp_gives_the_same_perplexity_on_every_axis(
    flags, settings, merged, tmp_path
) -> None:
    few = ("--calibration-rows", 40, "--calibration-length", 64)
    succeeds("model_pruning", *settings, *flags, *few, "--output-dir", tmp_path / "out")
    words = ("--model-path", tmp_path / "out", "--output-dir", tmp_path, "--quantization", "F32")
    succeeds("convert_to_gguf", *settings, *words)
    proof = json.loads((tmp_path / "tiny-F32_run.json").read_text())["metrics"]["proof"]
    assert proof["nll_gguf"] == pytest.approx(proof["nll_reference"], abs=0.01)  # 1 % perplexity


def test_heads_that_do_not_divide_the_hidden_size_reach_llama_cpp(settings, rows, tmp_path) -> None:
    write_tiny_llama(tmp_path / "model", num_attention_heads=8, num_key_value_heads=4, head_dim=32)
    flags = ("--model-path", tmp_path / "model", "--output-dir", tmp_path / "out")
    succeeds("model_pruning", *settings, *flags, "--kv-group-ratio", 0.25, "--criterion", "taylor")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert (config.model_type, config.num_attention_heads, config.head_dim) == ("mistral", 6, 32)
    words = ("--model-path", tmp_path / "out", "--output-dir", tmp_path, "--quantization", "F32")
    succeeds("convert_to_gguf", *settings, *words)
    proof = json.loads((tmp_path / "tiny-F32_run.json").read_text())["metrics"]["proof"]
    assert proof["nll_gguf"] == pytest.approx(proof["nll_reference"], abs=0.01)
