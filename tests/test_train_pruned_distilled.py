"""train_pruned_distilled.py: all stages in one run, none twice, a small model at the end."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from running import (
    Ran,
    another_run_writing,
    compared_here,
    files_under,
    leaves_nothing,
    refused,
    run,
    succeeds,
)
from safetensors.torch import load_file
from tiny_folders import swap_two_tokens, write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune.artifacts import require
from slimtune.console import near, size
from slimtune.training import lora, pipeline

# The comparison takes most of the time; one run with it is enough.
UNMEASURED = ("--stages", "prune,cache,distil,lora,merge")
SIZE = ("--target-size", "200kB")
STAGES = ("pruned", "teacher_cache", "distilled", "lora_adapter", "final")


@pytest.fixture(scope="module")
def small(settings, distilled, tmp_path_factory) -> Path:
    """Its teacher has been asked already: the cache is the one that made `distilled`."""
    folder = tmp_path_factory.mktemp("small")
    with compared_here():
        succeeds("train_pruned_distilled", *settings, "--output-dir", folder)
    return folder


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
        "teacher_cache",
        "knowledge_distillation",
        "train_lora",
        "train_pruned_distilled",
    ]
    ids = {stage: run["run_id"] for stage, run in runs.items()}
    inputs = {stage: {one["run_id"] for one in run["inputs"]} for stage, run in runs.items()}
    assert ids["pruned"] in inputs["distilled"] and ids["distilled"] in inputs["lora_adapter"]
    assert {ids["distilled"], ids["lora_adapter"]} <= inputs["final"]
    best = {name: run["metrics"].get("validation_loss_best") for name, run in runs.items()}
    assert best["lora_adapter"] < best["distilled"]
    cache = Path(runs["teacher_cache"]["metrics"]["cache"])
    assert (cache / "cache.json").is_file()
    assert not (small / "checkpoints").exists()
    for stage in ("pruned", "distilled", "lora_adapter", "final"):
        served = json.loads((small / stage / "generation_config.json").read_text("utf-8"))
        assert served["do_sample"] is False and served["max_new_tokens"] == 12, stage


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
        *UNMEASURED,
    )
    assert "wrote  out/final\n" in ran.out and "wrote  out/card.md\n" in ran.out
    assert ran.out.endswith("convert_to_gguf.py --model-path out/final --max-length 128\n")
    assert AutoModelForCausalLM.from_pretrained("out/final").config.intermediate_size == 64
    assert json.loads(Path("out/lora_adapter/adapter_config.json").read_text())["r"] == 2


def test_a_dry_run_estimates_and_writes_nothing(settings, merged, tmp_path) -> None:
    out = tmp_path / "out"
    ran = succeeds("train_pruned_distilled", *settings, "--output-dir", out, "--dry-run")
    parts = ("distilled\n", "lora_adapter\n", "final\n", "FFN neurons a layer: 128 -> 96")
    parts += ("teacher: about 0.5", "stages: prune, cache, distil, lora, merge, evaluate")
    for said in parts:
        assert said in ran.out
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_replaced_only_with_overwrite(settings, small, tmp_path) -> None:
    out = shutil.copytree(small, tmp_path / "out")
    words = ("train_pruned_distilled", *settings, "--output-dir", out)
    before = files_under(out)
    refused(2, "--overwrite", *words)
    assert files_under(out) == before
    flags = (
        "--ffn-ratio",
        0.5,
        "--epochs",
        1,
        "--distillation-epochs",
        1,
        "--overwrite",
        *UNMEASURED,
    )
    succeeds(*words, *flags)
    assert AutoModelForCausalLM.from_pretrained(out / "final").config.intermediate_size == 64
    assert not {r["run_id"] for r in records(out).values()} & {
        r["run_id"] for r in records(small).values()
    }


def test_a_dry_run_asks_both_stopped_trainings_whether_they_would_go_on(
    settings, merged, tmp_path, monkeypatch
) -> None:
    asked = []
    monkeypatch.setattr(pipeline, "require_resumable", lambda *given: asked.append(given[-1].name))
    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path, "--resume")
    succeeds(*words, "--dry-run")
    assert asked == ["distilled_checkpoints", "checkpoints"]


def test_a_stopped_run_goes_on_at_that_stage(settings, distilled, tmp_path, monkeypatch) -> None:
    def stop(*args, **kwargs) -> None:
        raise KeyboardInterrupt

    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path)
    words += ("--epochs", 2, "--distillation-epochs", 1, *UNMEASURED)
    with monkeypatch.context() as patched:
        patched.setattr(lora, "attach", stop)
        assert run(*words).code == 130
    stopped = records(tmp_path)
    assert list(stopped) == ["pruned", "teacher_cache", "distilled"]
    refused(2, "exists already", *words)
    assert records(tmp_path) == stopped
    ran = succeeds(*words, "--resume")
    assert "prune: finished already" in ran.err and "lora: starting" in ran.err
    assert {stage: records(tmp_path)[stage] for stage in stopped} == stopped
    assert list(records(tmp_path)) == list(STAGES)


def test_a_card_that_fails_costs_no_finished_run(settings, small, monkeypatch, caplog) -> None:
    before = (small / "card.md").read_text(encoding="utf-8")
    monkeypatch.setattr("slimtune.report.cost_card.cost_rows", lambda _: 1 / 0)
    ran = succeeds("train_pruned_distilled", *settings, "--output-dir", small, "--resume")
    assert "card.md is left out (ZeroDivisionError" in caplog.text
    assert "convert_to_gguf.py" in ran.out.splitlines()[-1]
    assert (small / "card.md").read_text(encoding="utf-8") == before


def test_the_card_says_what_each_stage_cost_and_brought(project, small) -> None:
    lines = (small / "card.md").read_text(encoding="utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    head, _, *rows = cells
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(table) == ["base", "prune", "cache", "distil", "lora", "merge", "evaluate"]
    runs = records(small)
    measured = json.loads((small / "evaluation" / "evaluation_results_metrics.json").read_text())
    base, pruned, distilled, final = measured["models"]
    for stage, model in {
        "base": base,
        "prune": pruned,
        "distil": distilled,
        "merge": final,
    }.items():
        assert table[stage]["parameters"] == f"{model['cost']['parameters']:,}"
        assert table[stage]["exact match %"] == f"{model['exact_match']['score']:.1f}"
        assert table[stage]["perplexity"] == f"{model['perplexity']['score']:.2f}"
    assert table["cache"]["on disk"] == size(runs["teacher_cache"]["metrics"]["bytes"])
    best = runs["lora_adapter"]["metrics"]["validation_loss_best"]
    assert (
        table["lora"]["validation loss"] == f"{best:.4f}" and table["lora"]["exact match %"] == "–"
    )
    assert all(table[stage]["seconds"].isdigit() for stage in list(table)[1:])
    assert all(table[stage]["peak memory"].endswith("B") for stage in list(table)[1:])


def test_the_model_card_of_each_compared_model_tells_its_test(small) -> None:
    for stage, label in {"pruned": "pruned", "distilled": "distilled", "final": small.name}.items():
        card = (small / stage / "README.md").read_text(encoding="utf-8")
        assert card.count("## Test") == 1 and f"\n{label} " in card, stage
        require(small / stage)  # the folder is as whole as before
    assert "## Test" not in (small / "lora_adapter/README.md").read_text(encoding="utf-8")


def test_with_everything_finished_the_card_is_shown_again(settings, small, tmp_path) -> None:
    out = shutil.copytree(small, tmp_path / "out")
    before = files_under(out)
    ran = succeeds("train_pruned_distilled", *settings, "--output-dir", out, "--resume")
    assert "none: all have finished" in ran.out
    assert "match %" in ran.out and "evaluate: finished already" in ran.err
    after = files_under(out)
    assert {n: b for n, b in after.items() if n != "card.md"} == {
        n: b for n, b in before.items() if n != "card.md"
    }


def test_stages_are_chosen(settings, small, tmp_path) -> None:
    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path)
    said = refused(3, "the stage lora reads it", *words, "--stages", "lora,merge")
    assert said[2].endswith("--stages distil,lora,merge")
    assert leaves_nothing(tmp_path)
    ran = succeeds(*words, "--stages", "prune")
    assert list(records(tmp_path)) == ["pruned"] and "lora" not in ran.err
    again = f"train_pruned_distilled.py --config {settings[1]} --output-dir {tmp_path} --resume"
    assert ran.out.endswith(f"next:  python finetune/{again}\n")
    shutil.copytree(small / "distilled", tmp_path / "distilled")
    succeeds(*words, "--stages", "merge,lora", "--epochs", 1)
    assert list(records(tmp_path)) == ["pruned", "distilled", "lora_adapter", "final"]
    assert refused(2, "exists already", *words, "--stages", "lora")
    weights = tmp_path / "distilled" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    refused(3, "not as knowledge_distillation left it", *words, "--stages", "lora", "--overwrite")


def test_without_test_rows_the_evaluation_is_left_out(
    settings, merged, rows, tmp_path, monkeypatch
) -> None:
    (tmp_path / "train.jsonl").write_bytes((rows / "train_train.jsonl").read_bytes())
    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path / "out", "--dry-run")
    words += ("--train-data", tmp_path / "train.jsonl")
    ran = succeeds(*words)
    assert "stages: prune, cache, distil, lora, merge\n" in ran.out
    refused(3, "nowhere.jsonl", *words, "--test-data", "nowhere.jsonl")


@pytest.fixture(scope="module")
def sized(settings, small, tmp_path_factory) -> tuple[Path, Ran]:
    """The finished run, asked for a size afterwards, beside the unpruned fine-tune of the base."""
    out = shutil.copytree(small, tmp_path_factory.mktemp("sized") / "out")
    with compared_here():
        ran = succeeds("train_pruned_distilled", *settings, "--output-dir", out, *SIZE, "--resume")
    return out, ran


def test_a_size_ends_with_the_best_file_that_fits(sized) -> None:
    out, ran = sized
    files = {one.name: one.stat().st_size for one in (out / "gguf").glob("*-200kB.gguf")}
    assert sorted(files) == ["final-200kB.gguf", "fine-tuned-200kB.gguf"]
    assert max(files.values()) <= 200_000
    metrics = out / "evaluation-200kB" / "evaluation_results_metrics.json"
    models = json.loads(metrics.read_text(encoding="utf-8"))["models"]
    labels = ["base", "pruned", "distilled", "out", "final-200kB", "fine-tuned-200kB"]
    assert [one["label"] for one in models] == labels
    best = max(models[-2:], key=lambda m: (m["exact_match"]["score"], -m["cost"]["bytes_on_disk"]))
    said = next(line for line in ran.out.splitlines() if "best that fits" in line)
    assert f"{best['label']}.gguf (exact match % {best['exact_match']['score']:.1f}" in said
    assert "evaluate_model.py" in ran.out.splitlines()[-1] and "--interactive" in ran.out
    assert all(f"{stage}: finished already" in ran.err for stage in ("prune", "lora", "merge"))
    card = (out / "card.md").read_text(encoding="utf-8")
    assert f"| {size(files['final-200kB.gguf'])} |" in card.partition("| convert |")[2]


def test_a_size_that_is_there_is_not_made_again(settings, sized, tmp_path) -> None:
    out = shutil.copytree(sized[0], tmp_path / "out")
    before = files_under(out / "gguf")
    words = ("train_pruned_distilled", *settings, "--output-dir", out, *SIZE)
    ran = succeeds(*words, "--resume")
    assert "none: all have finished" in ran.out and "best that fits" in ran.out
    assert files_under(out / "gguf") == before
    refused(2, "exists already", *words, "--stages", "convert")
    (out / "gguf" / "final-200kB_run.json").unlink()
    (out / "gguf" / "final-200kB.gguf").unlink()
    succeeds(*words, "--stages", "convert")
    after = files_under(out / "gguf")
    rival = [name for name in before if name.startswith("fine-tuned")]
    assert {n: after[n] for n in rival} == {n: before[n] for n in rival}
    assert after["final-200kB.gguf"] == before["final-200kB.gguf"]


def test_bits_are_the_final_models_and_both_files_have_its_bytes(settings, small, tmp_path) -> None:
    out = shutil.copytree(small, tmp_path / "out")
    words = ("train_pruned_distilled", *settings, "--output-dir", out, "--stages", "convert")
    succeeds(*words, *SIZE)
    ran = succeeds(*words, "--target-bits", 6)
    require(out / "gguf" / "final-200kB.gguf")  # is as it was
    final, rival = (out / "gguf" / f"{name}-6bpw.gguf" for name in ("final", "fine-tuned"))
    recorded = json.loads(final.with_name("final-6bpw_run.json").read_text())["metrics"]
    allowed = 6 * recorded["parameters"] / 8
    assert final.stat().st_size - allowed < 60_000  # the header, which bits do not count
    assert rival.stat().st_size <= final.stat().st_size + 2000
    assert "best that fits" not in ran.out  # nothing was compared


def test_a_size_is_weighed_before_the_first_stage(settings, merged, tmp_path) -> None:
    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path / "out")
    for dry in ([], ["--dry-run"]):
        said = refused(2, "gguf.target_size: 10.0 kB: this", *words, "--target-size", "10kB", *dry)
        least = int(said[2].split("--target-size ")[1].split(",")[0])
        assert 10_000 < least < 200_000
        refused(2, "gguf.target_bits: 0.1: this", *words, "--target-bits", 0.1, *dry)
    refused(2, "no size is given", *words, "--stages", "merge,convert")
    assert leaves_nothing(tmp_path / "out")


def test_the_last_stage_distils_into_the_file_that_is_named(settings, small, tmp_path) -> None:
    out = shutil.copytree(small, tmp_path / "out")
    words = ("train_pruned_distilled", *settings, "--output-dir", out, "--resume")
    words += ("--cache-dir", tmp_path / "cache", "--quantised-student", "Q4_K_M", "--max-rows", 2)
    with compared_here():
        ran = succeeds(*words)
    assert all(f"{stage}: finished already" in ran.err for stage in ("prune", "lora", "merge"))
    folder, made_from = out / "final-Q4_K_M", json.loads((out / "final" / "run.json").read_text())
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert made_from["run_id"] in {one["run_id"] for one in run["inputs"]}
    assert run["settings"]["distillation"]["teacher_model"] == str(out / "final")
    assert run["metrics"]["divergence_after"] < run["metrics"]["divergence_before"]
    file = folder / "final-Q4_K_M.gguf"
    metrics = out / "evaluation-Q4_K_M" / "evaluation_results_metrics.json"
    models = json.loads(metrics.read_text(encoding="utf-8"))["models"]
    assert [one["label"] for one in models][-2:] == ["out", "final-Q4_K_M"]
    assert f"best that fits: {near(file)}" in ran.out
    assert "--interactive" in ran.out.splitlines()[-1] and str(file) in ran.out.splitlines()[-1]
    card = (out / "card.md").read_text(encoding="utf-8")
    assert f"| {size(file.stat().st_size)} |" in card.partition("| quantise |")[2]
    assert "none: all have finished" in succeeds(*words).out


def test_the_layers_of_that_file_may_learn_one_after_another(settings, small, tmp_path) -> None:
    out = shutil.copytree(small, tmp_path / "out")
    words = ("train_pruned_distilled", *settings, "--output-dir", out, "--stages", "quantise")
    words += ("--quantised-student", "Q4_K_M", "--student", "layers")
    succeeds(*words)
    run = json.loads((out / "final-Q4_K_M" / "run.json").read_text(encoding="utf-8"))
    assert all(after <= before for before, after in run["metrics"]["layer_errors"])
    assert run["settings"]["distillation"]["teacher_model"] == str(out / "final")
    assert (out / "final-Q4_K_M" / "final-Q4_K_M.gguf").is_file()


def test_a_file_that_cannot_be_is_refused_before_the_first_stage(settings, merged, tmp_path):
    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path / "out")
    refused(2, "nothing is rounded in it", *words, "--quantised-student", "F16")
    refused(2, "do:  --quantised-student 4", *words, "--quantised-student", "10kB")
    refused(2, "--quantised-student Q4_K_M, or", *words, "--stages", "merge,quantise")
    ran = succeeds(*words, "--quantised-student", "1.2MB", "--student", "lora", "--dry-run")
    assert "merge, quantise, evaluate" in ran.out and "final-1.2MB\n" in ran.out
    assert leaves_nothing(tmp_path / "out")


def test_an_online_teacher_leaves_no_cache(settings, merged, tmp_path) -> None:
    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path, "--mode", "online")
    succeeds(*words, "--stages", "prune,cache,distil", "--distillation-epochs", 1)
    assert list(records(tmp_path)) == ["pruned", "distilled"]
    words = (*words[:-1], "sequence")
    refused(2, "knowledge_distillation.py --mode sequence", *words, "--overwrite")


@pytest.fixture(scope="module")
def trimmed(settings, merged, tmp_path_factory) -> tuple[Path, Ran]:
    """A run that begins with the vocabulary, and whose layers learn after the cut, under a full
    teacher; it was stopped before LoRA."""

    def stop(*args, **kwargs) -> None:
        raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("trimmed") / "out"
    words = ("train_pruned_distilled", *settings, "--output-dir", out, "--vocabulary", "trim")
    words += ("--text-data", "null", "--cache-dir", out.parent / "cache")
    words += ("--epochs", 2, "--distillation-epochs", 1)
    words += ("--recover", "blocks", "--recovery-epochs", 1, "--max-rows", 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lora, "attach", stop)
        assert run(*words).code == 130
    with compared_here():
        return out, succeeds(*words, "--resume")


def test_a_run_that_trims_goes_on_where_it_was_stopped(trimmed) -> None:
    out, ran = trimmed
    for stage in ("vocabulary", "prune", "blocks", "cache", "distil"):
        assert f"{stage}: finished already" in ran.err
    assert "lora: starting" in ran.err and "evaluate: starting" in ran.err
    runs = records(out) | {"trimmed": json.loads((out / "trimmed/run.json").read_text())}
    assert runs["trimmed"]["run_id"] in {one["run_id"] for one in runs["pruned"]["inputs"]}
    assert runs["trimmed"]["metrics"]["ffn_after"] == 128
    assert (
        runs["pruned"]["metrics"]["ffn_after"] == 96 and "trimmed" not in runs["pruned"]["metrics"]
    )
    rows = (out / "card.md").read_text(encoding="utf-8").splitlines()
    names = [line.split("|")[1].strip() for line in rows if line.startswith("|")]
    stages = ["vocabulary", "prune", "blocks", "cache", "distil", "lora", "merge", "evaluate"]
    assert names[2:] == ["base", *stages]


def test_layers_learn_after_the_cut_and_the_student_is_what_they_became(trimmed) -> None:
    out, _ = trimmed
    runs = {
        name: json.loads((out / name / "run.json").read_text())
        for name in ("trimmed", "pruned", "recovered", "distilled")
    }
    taught = runs["recovered"]
    read = [one["run_id"] for one in taught["inputs"]]
    assert read == [runs["trimmed"]["run_id"], runs["pruned"]["run_id"]]
    assert taught["run_id"] in {one["run_id"] for one in runs["distilled"]["inputs"]}
    metrics, cut = taught["metrics"], runs["pruned"]["metrics"]
    assert len(metrics["layer_errors"]) == 2 and "layer_errors" not in cut
    assert all(after < before for before, after in metrics["layer_errors"])
    assert metrics["perplexity_before"] == pytest.approx(cut["perplexity_before"])
    assert runs["pruned"]["settings"]["pruning"]["refit"] is False
    compared = json.loads((out / "evaluation" / "evaluation_results_metrics.json").read_text())
    assert [Path(one["reference"]).name for one in compared["models"]][2:4] == [
        "pruned",
        "recovered",
    ]


def test_every_model_of_such_a_run_has_the_tokens_left(project, trimmed) -> None:
    out, _ = trimmed
    kept = json.loads((out / "trimmed/vocabulary_map.json").read_text())["kept"]
    assert len(kept) < AutoModelForCausalLM.from_pretrained(project / "base").config.vocab_size
    for stage in ("trimmed", "pruned", "recovered", "distilled", "final"):
        model = AutoModelForCausalLM.from_pretrained(out / stage)
        assert model.get_output_embeddings().weight.shape[0] == len(kept), stage
        assert len(AutoTokenizer.from_pretrained(out / stage)) == len(kept), stage
        assert json.loads((out / stage / "vocabulary_map.json").read_text())["kept"] == kept


def test_what_comes_after_works_on_the_final_one(settings, trimmed, tmp_path) -> None:
    out, _ = trimmed
    model = ("--model-path", out / "final", "--output-dir", tmp_path, "--model-name", "small")
    ran = succeeds("convert_to_gguf", *settings, *model, "--quantization", "Q8_0")
    assert "hard texts" in ran.out
    words = ("--base-model", out / "final", "--output-dir", tmp_path / "tuned", "--epochs", 1)
    succeeds("train_lora", *settings, *words)


def test_stages_of_a_run_that_trims(settings, trimmed, tmp_path) -> None:
    words = ("train_pruned_distilled", *settings, "--output-dir", tmp_path, "--stages")
    said = refused(3, "the stage prune reads it", *words, "prune", "--vocabulary", "trim")
    assert said[2].endswith("--stages vocabulary,prune")
    refused(2, "vocabulary, and it is kept", *words, "vocabulary,prune")
    refused(2, "blocks, and no layer learns", *words, "prune,blocks")
    said = refused(3, "the stage distil reads it", *words, "distil", "--recover", "blocks")
    assert said[2].endswith("--stages blocks,distil")
    none = ("vocabulary,prune", "--vocabulary", "trim", "--ffn-ratio", 0)
    refused(2, "every ratio is 0", *words, *none)
    assert leaves_nothing(tmp_path)
    ran = succeeds(*words, "vocabulary,prune", "--vocabulary", "trim", "--dry-run")
    assert "trimmed\n" in ran.out and "stages: vocabulary, prune\n" in ran.out


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
