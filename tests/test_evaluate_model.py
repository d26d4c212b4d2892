"""evaluate_model.py: a table that tells models apart, an exact merge, a chat; mistakes are told."""

import contextlib
import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from running import (
    another_run_writing,
    compared_in_forks,
    files_under,
    leaves_nothing,
    refused,
    run,
    succeeds,
)
from tiny_folders import write_tiny_llama
from tiny_ggufs import put_into_ollama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune.console import runnable
from slimtune.evaluation import comparison
from slimtune.settings import PROJECT


def table_of(file: Path) -> list[dict[str, str]]:
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def exact(metrics_file: Path) -> dict[str, float]:
    """{model: per cent of exact matches}."""
    models = json.loads(metrics_file.read_text())["models"]
    return {one["label"]: one["exact_match"]["score"] for one in models}


def measure_of_the_guide(output: Path) -> dict[str, int]:
    """{model: rows} by the lines that OPTIMIZATION_GUIDE shows for a measure of one's own."""
    guide = (PROJECT / "OPTIMIZATION_GUIDE.md").read_text(encoding="utf-8")
    code = guide.partition("### A measure of your own")[2].partition("```python\n")[2]
    code = code.partition("```")[0].replace("models/evaluation/evaluation_results.csv", str(output))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "the guide", "exec"), {})
    lines = re.findall(r"^(.+): .* in (\d+) of \d+ answers$", said.getvalue(), re.M)
    return {model: int(rows) for model, rows in lines}


@pytest.mark.usefixtures("in_process")
class TestComparison:
    def test_flags_only(self, project, rows, adapter, merged, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        ran = succeeds(
            *("evaluate_model", "--base-model", project / "base", "--lora-model", adapter),
            *("--test-data", rows / "train_test.jsonl", "--output", "evaluation_results.csv"),
            *("--max-new-tokens", 12, "--device", "cpu"),
        )
        assert "wrote  evaluation_results.csv\n" in ran.out
        assert "wrote  training_report.md\n" in ran.out
        assert "wrote  report.html\n" in ran.out
        assert (
            f"next:  {runnable('python finetune/convert_to_gguf.py')} --model-path {merged}"
            in ran.out
        )
        assert re.search(r"^\s*base +0\.0", ran.out, re.M)
        assert re.search(r"^\s*fine-tuned +100\.0 +better", ran.out, re.M)
        names = {f"evaluation_results{end}" for end in (".csv", "_metrics.json", "_run.json")}
        assert set(files_under(tmp_path)) == names | {"training_report.md", "report.html"}

    def test_a_limit_that_is_broken_ends_it_after_all_is_written(
        self, settings, rows, adapter, tmp_path
    ) -> None:
        output, limits = tmp_path / "results.csv", "forgot=1,match_below=1.5"
        few = ("--max-rows", 2, "--general", 4)
        ran = run("evaluate_model", *settings, *few, "--output", output, "--fail-if", limits)
        assert ran.code == 5 and "fine-tuned: match 1.000 (match_below=1.5)" in ran.error[0]
        assert "wrote  " in ran.out and "next:  " in ran.out
        assert "What it forgot" in (tmp_path / "training_report.md").read_text(encoding="utf-8")
        metrics = json.loads((tmp_path / "results_metrics.json").read_text(encoding="utf-8"))
        assert [one["label"] for one in metrics["forgotten"]["models"]] == ["base", "fine-tuned"]

    def test_every_prompt_has_a_row_with_both_answers(
        self, project, settings, rows, adapter, tmp_path
    ) -> None:
        output = tmp_path / "results.csv"
        succeeds("evaluate_model", *settings, "--output", output)
        lines = (rows / "train_test.jsonl").read_text().splitlines()
        written = table_of(output)
        assert len(written) == len(lines)
        for line, row in zip(map(json.loads, lines), written, strict=True):
            question, answer = (message["content"] for message in line["messages"])
            assert {question, answer, line["id"]} <= set(row.values())
        answers = [
            {row[column] for row in written}
            for column in written[0]
            if column in ("base", "fine-tuned") or column.endswith(("answer",))
        ]
        assert len(answers) == 2 and answers[0] != answers[1]
        scores = exact(tmp_path / "results_metrics.json")
        assert scores["base"] < 10 and scores["fine-tuned"] > 90
        told = measure_of_the_guide(output)
        assert told["fine-tuned"] > 0.9 * len(lines) > told["base"]

    def test_who_sets_a_temperature_is_measured_with_it(
        self, settings, rows, adapter, gguf, tmp_path
    ) -> None:
        drawn = ("--temperature", 1.5, "--top-k", 30, "--seed", 3, "--models", gguf)
        files = [tmp_path / name for name in ("greedy", "one", "two")]
        for file, flags in zip(files, [drawn[-2:], drawn, drawn], strict=True):
            succeeds("evaluate_model", *settings, *flags, "--output", file / "r.csv")
        greedy, one, two = (table_of(file / "r.csv") for file in files)
        assert one == two and "decoding" not in greedy[0]
        said = "temperature 1.5, top_k 30, seed 3"
        assert {row["decoding"] for row in one} == {said}
        metrics = [json.loads((file / "r_metrics.json").read_text()) for file in files]
        assert [one["settings"]["decoding"] for one in metrics] == ["greedy", said, said]
        reports = [(file / "training_report.md").read_text("utf-8") for file in files]
        assert "tokens, greedy." in reports[0] and f"chosen by {said}." in reports[1]
        column = "fine-tuned answer"
        assert [row[column] for row in one] != [row[column] for row in greedy]

    @pytest.mark.parametrize(("language", "word"), [("en", "Glossary"), ("zh", "术语")])
    def test_the_report_has_every_stage_and_no_place_left_open(
        self, language, word, settings, distilled, gguf, tmp_path
    ) -> None:
        models = f"{distilled},{gguf}"
        flags = ("--models", models, "--language", language, "--output", tmp_path / "r.csv")
        ran = succeeds("evaluate_model", *settings, *flags)
        report = (tmp_path / "training_report.md").read_text(encoding="utf-8")
        assert word in report
        cautions = [line for line in ran.err.splitlines() if line.startswith("caution: only 8")]
        assert bool(cautions) is (language == "en")  # in the language of the table before them
        assert not re.search(r"\$\{?\w+\}?|\{\w*\}|TODO|None\b|nan\b", report)
        for stage in ("prepare_data", "train_lora", "model_pruning", "knowledge_distillation"):
            assert f"python finetune/{stage}.py --config" in report
        assert "tiny-F16" in report and "distilled" in report

    def test_a_gguf_answers_as_the_model_it_was_made_from(self, settings, gguf, tmp_path) -> None:
        output = tmp_path / "results.csv"
        succeeds("evaluate_model", *settings, "--models", gguf, "--output", output)
        scores = exact(tmp_path / "results_metrics.json")
        assert scores["tiny-F16"] == scores["fine-tuned"] > 90

    def test_trained_on_questions_are_counted_whatever_config_yaml_names(
        self, project, rows, adapter, tmp_path
    ) -> None:
        """The file names other rows, as it does for who trained with --train-data."""
        config, learned = tmp_path / "config.yaml", tmp_path / "learned.jsonl"
        config.write_text("training: {train_data: other_train.jsonl}\n", encoding="utf-8")
        (tmp_path / "other_train.jsonl").write_text("", encoding="utf-8")
        three = (rows / "train_train.jsonl").read_text("utf-8").splitlines()[:3]
        learned.write_text("\n".join(three), encoding="utf-8")
        words = ("--config", config, "--base-model", project / "base", "--lora-model")
        counted, files = [], ("--test-data", learned)
        for name, model, test in (("a", adapter, files), ("b", "null", files), ("c", adapter, ())):
            output = ("--output", tmp_path / name / "r.csv", "--max-rows", 3)
            succeeds("evaluate_model", *words, model, *test, *output, "--max-new-tokens", 4)
            found = json.loads((tmp_path / name / "r_metrics.json").read_text())["settings"]
            counted.append((found["leaked_rows"], found["training_rows"]))
        total = len((rows / "train_train.jsonl").read_text("utf-8").splitlines())
        assert counted == [(3, total), (None, None), (0, total)]
        told = (tmp_path / "b" / "training_report.md").read_text("utf-8")
        assert "trained on is not known" in told
        # Nobody named rows for the last one: those beside the adapter's own were asked.
        inputs = json.loads((tmp_path / "c" / "r_run.json").read_text())["inputs"]
        assert inputs[0]["path"] == str(rows / "train_test.jsonl")

    def test_a_base_alone_and_fewer_rows(self, settings, adapter, tmp_path) -> None:
        output = tmp_path / "results.csv"
        flags = ("--lora-model", "null", "--max-rows", 3, "--output", output)
        succeeds("evaluate_model", *settings, *flags)
        assert len(table_of(output)) == 3
        assert list(exact(tmp_path / "results_metrics.json")) == ["base"]

    def test_results_are_replaced_only_with_overwrite(self, settings, adapter, tmp_path) -> None:
        words = ("evaluate_model", *settings, "--output", tmp_path / "r.csv", "--max-rows")
        succeeds(*words, 4)
        before = files_under(tmp_path)
        refused(2, "--overwrite", *words, 2)
        assert "would need --overwrite" in succeeds(*words, 2, "--dry-run").err
        assert files_under(tmp_path) == before
        succeeds(*words, 2, "--overwrite")
        assert len(table_of(tmp_path / "r.csv")) == 2

    def test_each_model_beside_the_one_it_was_made_from(
        self, settings, merged, pruned, distilled, gguf, tmp_path
    ) -> None:
        output = tmp_path / "results.csv"
        models = ",".join(map(str, (gguf, merged, pruned, distilled)))
        flags = ("--models", models, "--baseline", "merged", "--output", output)
        succeeds("evaluate_model", *settings, *flags)
        told = json.loads((tmp_path / "results_metrics.json").read_text())["models"]
        assert [one["label"] for one in told] == [
            *("merged", "base", "fine-tuned", "tiny-F16", "pruned", "distilled")
        ]
        found = {one["label"]: one for one in told}
        sources = {name: one["made_from"] for name, one in found.items()}
        assert sources == {
            "merged": "fine-tuned",
            "base": None,
            "fine-tuned": "base",
            "tiny-F16": "merged",
            "pruned": "merged",
            "distilled": "pruned",
        }
        originals = {one["original"] for name, one in found.items() if name != "fine-tuned"}
        assert originals == {"fine-tuned"} and found["fine-tuned"]["original"] is None
        apart = {
            name: one["kl_divergence"]["score"] for name, one in found.items() if one["original"]
        }
        assert apart["tiny-F16"] < apart["distilled"] and apart["tiny-F16"] < 0.01 < apart["base"]
        assert found["distilled"]["kl_divergence"]["verdict_made_from"] is not None

    @pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
    def test_a_baseline_that_is_not_compared(self, dry, settings, adapter, tmp_path) -> None:
        flags = ("--baseline", "finetuned", "--output", tmp_path / "out" / "r.csv", *dry)
        error = refused(2, "no model of this comparison", "evaluate_model", *settings, *flags)
        assert "base, fine-tuned" in error[1] and "did you mean fine-tuned?" in error[2]
        assert leaves_nothing(tmp_path / "out")

    @pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
    def test_a_broken_model_is_told_before_any_is_asked(
        self, dry, settings, adapter, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(comparison, "_in_child", None)
        empty = write_tiny_llama(tmp_path / "empty", hidden=64)
        (empty / "model.safetensors").unlink()
        flags = ("--models", empty, "--output", tmp_path / "out" / "r.csv", *dry)
        refused(3, "no weights", "evaluate_model", *settings, *flags)
        assert leaves_nothing(tmp_path / "out")

    @pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
    def test_an_adapter_for_another_base(self, dry, settings, adapter, tmp_path) -> None:
        other = write_tiny_llama(tmp_path / "other", hidden=32)
        flags = ("--base-model", other, "--output", tmp_path / "out" / "r.csv", *dry)
        error = refused(3, "for another base", "evaluate_model", *settings, *flags)
        assert "project" in error[2] and error[2].endswith("base")
        assert leaves_nothing(tmp_path / "out")


def test_each_model_has_a_process_of_its_own(settings, adapter, tmp_path) -> None:
    """No model's memory counts for another; answers and measures come back from there."""
    flags = ("--max-rows", 3, "--output", tmp_path / "r.csv")
    with compared_in_forks():
        succeeds("evaluate_model", *settings, *flags)
    scores = exact(tmp_path / "r_metrics.json")
    assert scores["base"] < 10 and scores["fine-tuned"] == 100


def _exact_matches(card: str) -> list[list[str]]:
    """The scores of each table of a card's test."""
    lines = [line for line in card.splitlines() if line.startswith("| exact match")]
    return [[cell.split()[0] for cell in line.split("|")[2:4]] for line in lines]


@pytest.mark.usefixtures("in_process")
def test_the_card_of_a_merged_model_is_its_own_and_tells_the_test(
    project, settings, rows, adapter, tmp_path
) -> None:
    base, tuned = tmp_path / "base", tmp_path / "lora_adapter"
    shutil.copytree(project / "base", base)
    shutil.copytree(adapter, tuned)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# The base's own words\n")
    words = ("evaluate_model", *settings, "--base-model", base, "--lora-model", tuned)
    words += ("--output", tmp_path / "compared/results.csv")

    def card(name: str) -> str:
        succeeds(*words, "--merge", "--output-dir", tmp_path / name)
        return (tmp_path / name / "README.md").read_text(encoding="utf-8")

    before = card("untested")
    assert before.startswith("---\nlibrary_name: transformers\nlicense: mit\n")
    assert "# base, with the adapter lora_adapter merged in\n" in before
    assert "own words" not in before and "## Test" not in before
    following = succeeds(*words).out.partition("next:  ")[2]
    assert "--merge" in following and "compared/results.csv" in following
    (mine,) = _exact_matches((tuned / "README.md").read_text(encoding="utf-8"))
    after = card("tested")
    found = exact(tmp_path / "compared/results_metrics.json")
    assert _exact_matches(after) == [mine]
    assert mine == [f"{found['base']:.1f}", f"{found['fine-tuned']:.1f}"]
    assert "The adapter before it was merged" in after
    assert str(tmp_path) not in after and not re.search(r"\d\.\d{6}", after)
    run = json.loads((tuned / "run.json").read_text(encoding="utf-8"))
    (tuned / "run.json").write_text(json.dumps(run | {"run_id": "another"}), encoding="utf-8")
    assert card("trained_again") == before  # those figures are another training's


def test_a_dry_run_names_the_models_and_writes_nothing(settings, rows, merged, tmp_path) -> None:
    flags = ("--models", merged, "--output", tmp_path / "r.csv", "--dry-run")
    ran = succeeds("evaluate_model", *settings, *flags)
    count = len((rows / "train_test.jsonl").read_text("utf-8").splitlines())
    assert f"rows: {count}\n" in ran.out and "report.html" in ran.out
    assert "models: base, fine-tuned, merged" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_the_merged_model_is_base_plus_adapter(project, adapter, merged) -> None:
    ids = AutoTokenizer.from_pretrained(merged)("The cat sat on", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(project / "base", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    with torch.no_grad():
        before = base(ids).logits
        expected = PeftModel.from_pretrained(base, str(adapter))(ids).logits
        found = model(ids).logits
    # The merged weights are rounded once to the base's bfloat16.
    assert (found - expected).abs().max() < (before - expected).abs().max() / 20


def test_the_merged_folder_is_ordinary(merged, adapter) -> None:
    run = json.loads((merged / "run.json").read_text())
    assert run["stage"] == "merge" and run["metrics"]["changed"] == 14
    assert {"model.safetensors", "tokenizer.model", "chat_template.jinja"} <= set(run["files"])
    template = (merged / "chat_template.jinja").read_text()
    assert template == (adapter / "chat_template.jinja").read_text()


def test_merging_with_flags_only(project, adapter, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, "tuned/lora_adapter")
    words = ("evaluate_model", "--base-model", project / "base", "--merge", "--lora-model")
    ran = succeeds(*words, "tuned/lora_adapter")
    assert ran.out.startswith("wrote  tuned/merged_model\n")
    assert ran.out.endswith("convert_to_gguf.py --model-path tuned/merged_model\n")
    before = files_under(tmp_path)
    refused(2, "--overwrite", *words, "tuned/lora_adapter")
    assert files_under(tmp_path) == before
    succeeds(*words, "tuned/lora_adapter", "--output-dir", "elsewhere")
    assert (tmp_path / "elsewhere/model.safetensors").is_file()


def test_a_dry_merge_writes_nothing(settings, adapter, tmp_path) -> None:
    out = tmp_path / "out"
    ran = succeeds("evaluate_model", *settings, "--merge", "--dry-run", "--output-dir", out)
    assert "would write" in ran.out and "memory: " in ran.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_merging_an_adapter_into_another_base(dry, settings, adapter, tmp_path) -> None:
    other = write_tiny_llama(tmp_path / "other", hidden=32)
    flags = ("--base-model", other, "--merge", "--output-dir", tmp_path / "out", *dry)
    refused(3, "for another base", "evaluate_model", *settings, *flags)
    assert leaves_nothing(tmp_path / "out") and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_merging_without_an_adapter(dry, settings, rows, tmp_path) -> None:
    flags = ("--merge", "--lora-model", "null", "--output-dir", tmp_path / "out", *dry)
    refused(2, "--lora-model", "evaluate_model", *settings, *flags)


def test_a_merge_that_another_run_is_writing(settings, adapter, tmp_path) -> None:
    with another_run_writing(tmp_path / "out"):
        flags = ("--merge", "--output-dir", tmp_path / "out")
        refused(6, "another run", "evaluate_model", *settings, *flags)
    assert leaves_nothing(tmp_path)


def test_a_chat_answers_from_stdin_and_ends_on_exit(settings, adapter) -> None:
    typed = "What did the cat do on day 99?\n第99天天气怎么样？\n/exit\nnever said\n"
    ran = succeeds("evaluate_model", *settings, "--interactive", stdin=typed)
    assert "The cat sat on the mat." in ran.out and "今天天气很好。" in ran.out
    assert ran.out.count("> ") == 3
    assert "chatting with fine-tuned" in ran.err


def test_a_chat_with_a_gguf_ends_with_its_input(settings, gguf) -> None:
    flags = ("--interactive", "--models", gguf)
    ran = succeeds("evaluate_model", *settings, *flags, stdin="And the dogs, at 99 o'clock?\n")
    assert "12 dogs ran over the hill." in ran.out
    assert "chatting with tiny-F16" in ran.err


def test_a_chat_with_a_gguf_needs_nothing_else(project, settings, gguf, tmp_path) -> None:
    """No base, no adapter, no record of ours: the file's own vocabulary and template do."""
    alone = tmp_path / "downloaded.gguf"
    shutil.copyfile(gguf, alone)
    nowhere = ("--base-model", "./no-base", "--lora-model", "./no-adapter")
    flags = ("--interactive", "--models", alone, *nowhere)
    ran = succeeds("evaluate_model", *settings, *flags, stdin="And the dogs, at 99 o'clock?\n")
    assert "12 dogs ran over the hill." in ran.out
    assert "chatting with downloaded" in ran.err
    for label in ("base", "fine-tuned"):
        assert f"{label}: left out of this chat, " in ran.err


def test_a_chat_with_one_file_says_nothing_of_what_the_settings_have_by_default(
    gguf, tmp_path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {device: cpu}\nevaluation: {lora_model: never/trained}\n")
    flags = ("--config", file, "--interactive", "--models", gguf)
    ran = succeeds("evaluate_model", *flags, stdin="/model\n")
    assert "left out" not in ran.err and "there are tiny-F16;" in ran.out


def test_a_chat_with_a_model_in_ollamas_store(settings, gguf, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(put_into_ollama(tmp_path / "store", "tiny:1", gguf)))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")  # nobody's: else a running Ollama is asked
    flags = ("--interactive", "--models", "ollama:tiny:1", "--lora-model", "null")
    ran = succeeds("evaluate_model", *settings, *flags, stdin="And the dogs, at 99 o'clock?\n")
    assert "12 dogs ran over the hill." in ran.out
    assert "chatting with tiny-1" in ran.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--base-model", "./nowhere"], "nowhere: not there"),
        (["--lora-model", "nowhere"], "nowhere: not there"),
        (["--models", "./nowhere"], "nowhere: not there"),
        (["--models", "nowhere.gguf"], "nowhere.gguf: not there"),
        (["--models", "fake.gguf"], "fake.gguf: not a GGUF file"),
        (["--test-data", "nowhere.jsonl"], "nowhere.jsonl: not there"),
        (["--train-data", "alone.jsonl"], "no test rows beside it"),
        (["--test-data", "alone.jsonl"], "alone.jsonl"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_what_is_missing_is_named(
    flags, words, dry, settings, adapter, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alone.jsonl").write_text("")
    (tmp_path / "fake.gguf").write_text("no model")
    flags = (*settings, *flags, *dry, "--output", "out/r.csv")
    refused(3, words, "evaluate_model", *flags)
    assert leaves_nothing(tmp_path / "out")


def test_a_gguf_whose_stage_did_not_finish(settings, gguf, tmp_path) -> None:
    partial = tmp_path / "tiny-F16.partial"
    partial.mkdir()
    shutil.copy(gguf, partial)
    flags = ("--models", partial / gguf.name, "--output", tmp_path / "out/r.csv")
    refused(3, "did not finish", "evaluate_model", *settings, *flags)
    assert leaves_nothing(tmp_path / "out")


def test_a_gguf_damaged_since_it_was_written(settings, gguf, tmp_path) -> None:
    damaged = shutil.copytree(gguf.parent, tmp_path / "gguf") / gguf.name
    with damaged.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(4096))
    flags = ("--models", damaged, "--output", tmp_path / "out/r.csv")
    error = refused(3, "not as convert_to_gguf left it", "evaluate_model", *settings, *flags)
    assert "convert_to_gguf.py" in error[2]
    assert leaves_nothing(tmp_path / "out")
