"""knowledge_distillation.py: the student loses less on rows kept aside; the teacher runs once."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from running import another_run_writing, files_under, leaves_nothing, refused, run, succeeds
from safetensors.torch import load_file
from tiny_folders import swap_two_tokens, write_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtune import prompts
from slimtune.console import runnable, size
from slimtune.inference import generation
from slimtune.models import tokenizers
from slimtune.training import teacher_cache
from slimtune.training.callbacks import ProgressShown

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


def test_every_folder_on_the_way_is_served_as_it_is_measured(
    adapter, merged, pruned, distilled
) -> None:
    """Greedily, and no longer than the settings say; the base's ids stay."""
    for folder in (adapter, merged, pruned, distilled):
        found = json.loads((folder / "generation_config.json").read_text("utf-8"))
        assert found.pop("eos_token_id") == 2 and found.pop("bos_token_id") == 1, folder
        assert {"do_sample": False, "max_new_tokens": 12}.items() <= found.items(), folder
        assert not found.keys() & {"temperature", "top_k", "top_p"}, folder


def test_flags_only(merged, pruned, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = succeeds(
        *("knowledge_distillation", "--teacher-model", merged, "--student-model", pruned),
        *("--train-data", rows / "train_train.jsonl", "--text-data", "null", "--epochs", 1),
        *("--output-dir", "out", "--cache-dir", "cache", "--device", "cpu"),
    )
    lines = ran.out.splitlines()
    assert lines[0] == "wrote  out" and "validation" in ran.out and " -> " in lines[3]
    family = f"--base-model {pruned} --lora-model null --models out --device cpu"
    assert lines[-1] == f"next:  {runnable('python finetune/evaluate_model.py')} {family}"
    assert json.loads(Path("out/run.json").read_text())["metrics"]["text_passages"] == 0


def test_the_teacher_is_asked_once(settings, pruned, tmp_path, monkeypatch) -> None:
    words = ("knowledge_distillation", *settings, *QUICK, *words_for(tmp_path))
    succeeds(*words)

    def never(*args, **kwargs) -> None:
        raise AssertionError("the teacher ran again")

    monkeypatch.setattr(teacher_cache, "write_cache", never)
    succeeds(*words, "--overwrite", "--learning-rate", "5e-4", "--alpha", "0.9")
    assert run(*words, "--overwrite", "--top-k", 4).code == 1


def test_a_dry_run_estimates_and_writes_nothing(settings, pruned, tmp_path) -> None:
    words = ("knowledge_distillation", *settings, *words_for(tmp_path), "--dry-run")
    ran = succeeds(*words)
    for said in ("would write", "text passages: 3", "training_rows: ", "memory: "):
        assert said in ran.out
    assert "teacher: about 0.5" in ran.out and "alone and before the student" in ran.out
    tokens = int(re.search(r"on disk for ([\d,]+) tokens", ran.out)[1].replace(",", ""))
    assert size(tokens * 32 * 4) in ran.out
    assert "beside the student" in succeeds(*words, "--mode", "online").out
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
    other = (*words, "--resume", "--alpha", 0.25)
    for dry in ([], ["--dry-run"]):
        refused(2, "distillation.alpha was 0.5, now 0.25", *other, *dry)
    succeeds(*words, "--resume", "--dry-run")
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
        (5, ["--learning-rate", "9"], "lower --learning-rate"),
        (5, ["--learning-rate", "1e-30"], "raise --learning-rate (auto is 0.001)"),
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
    said = refused(3, "different vocabularies", "knowledge_distillation", *settings, *flags)
    assert "--mode sequence" in said[2]
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["teacher"]


@pytest.fixture(scope="module")
def foreign(merged, tmp_path_factory) -> Path:
    """The fine-tuned model with two of its tokens called by each other's name."""
    ours = shutil.ignore_patterns("run.json")
    copy = shutil.copytree(merged, tmp_path_factory.mktemp("foreign") / "teacher", ignore=ours)
    return swap_two_tokens(copy)


def test_a_foreign_teacher_writes_the_answers(
    settings, foreign, pruned, rows, tmp_path, monkeypatch
) -> None:
    words = ("knowledge_distillation", *settings, "--mode", "sequence", *words_for(tmp_path))
    words += ("--teacher-model", foreign, "--answer-tokens", 24)
    dry = succeeds(*words, "--dry-run")
    assert "alone and before the student" in dry.out and not files_under(tmp_path)
    for split in ("train", "validation"):  # so that the answers given and the teacher's differ
        given = read(rows / f"train_{split}.jsonl")
        for row in given:
            row["messages"][-1]["content"] = "12 dogs"
        lines = "".join(json.dumps(row) + "\n" for row in given)
        (tmp_path / f"own_{split}.jsonl").write_text(lines, encoding="utf-8")
    words += ("--train-data", tmp_path / "own_train.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(generation, "run_batched", stopping_after_one_batch(generation.run_batched))
        assert run(*words, "--max-length", 127).code == 130
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("cache/*/run.json"))
    succeeds(*words, "--max-length", 127)
    (answers,) = (tmp_path / "cache").glob("answers-*")
    assert not list((tmp_path / "cache").glob("*.kept.jsonl"))
    written = read(answers / "rows_train.jsonl")
    given = {row["id"]: row for row in read(rows / "train_train.jsonl")}
    assert 0 < len(written) <= len(given) and (answers / "rows_validation.jsonl").is_file()
    expected = answers_of(foreign, [given[row["id"]]["messages"][0] for row in written[:5]])
    assert [row["messages"][-1]["content"] for row in written[:5]] == expected
    assert "12 dogs" not in expected
    metrics = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]
    assert metrics["training_rows"] == len(written)
    assert metrics["perplexity_after"] < metrics["perplexity_before"]

    def never(*args, **kwargs) -> None:
        raise AssertionError("the teacher wrote again")

    monkeypatch.setattr(generation, "generate", never)
    succeeds(*words, "--max-length", 127, "--overwrite", *QUICK)
    (answers / "rows_train.jsonl").write_text("{}", encoding="utf-8")
    refused(3, "not as teacher_answers left it", *words, "--max-length", 127, "--overwrite")


def stopping_after_one_batch(run_batched):
    """`run_batched` in small batches, with Ctrl-C after the first."""

    def stopped(lengths, budget, *told):
        found = run_batched(lengths, 4 * max(lengths), *told)
        for _ in range(4):
            yield next(found)
        raise KeyboardInterrupt

    return stopped


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def answers_of(folder: Path, questions: list[dict]) -> list[str]:
    """transformers' own greedy answers, one by one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, answers = tokenizers.load_tokenizer(folder), []
    for question in questions:
        ids = prompts.encode_prompt(tokenizer, [question], tokenizer.chat_template)
        said = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0]
        answers.append(tokenizer.decode(said[len(ids) :], skip_special_tokens=True).strip())
    return answers


def test_a_teacher_that_never_comes_to_an_end(settings, foreign, pruned, tmp_path) -> None:
    words = ("--mode", "sequence", "--teacher-model", foreign, "--answer-tokens", 1)
    flags = (*settings, *words, *words_for(tmp_path))
    refused(3, "can be used", "knowledge_distillation", *flags)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("cache/answers-*/run.json"))


@pytest.mark.parametrize("start", ["default", "pissa"])
def test_a_student_with_adapters_is_saved_merged(start, settings, pruned, rows, tmp_path) -> None:
    words = ("knowledge_distillation", *settings, "--student", "lora", *words_for(tmp_path))
    succeeds(*words, "--learning-rate", "1e-2", "--lora-init", start)
    out = tmp_path / "out"
    assert not (out / "adapter").exists() and not (out / "adapter_config.json").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, out))
    assert {name: t.dtype for name, t in before.items()} == {n: t.dtype for n, t in after.items()}
    untouched, adapted = "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[adapted], after[adapted])
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    found = math.exp(loss(out, rows / "train_validation.jsonl"))
    assert found == pytest.approx(metrics["perplexity_after"], rel=0.02)
    assert found < 0.97 * metrics["perplexity_before"]


def test_a_teacher_in_four_bits_says_other_things(settings, pruned, tmp_path) -> None:
    words = ("knowledge_distillation", *settings, *QUICK, *words_for(tmp_path), "--overwrite")
    succeeds(*words)
    succeeds(*words, "--teacher-quantization", "nf4")
    first, second = sorted((tmp_path / "cache").glob("*/part-00000.safetensors"))
    one, two = load_file(first), load_file(second)
    assert one["ids"].shape == two["ids"].shape
    assert not torch.equal(one["log_probabilities"], two["log_probabilities"])


@pytest.mark.parametrize("what", ["damaged", "of another data set"])
def test_a_cache_that_cannot_be_trusted(what, settings, pruned, rows, tmp_path) -> None:
    words = ("knowledge_distillation", *settings, *QUICK, *words_for(tmp_path))
    succeeds(*words)
    (cache,) = (tmp_path / "cache").iterdir()
    if what == "damaged":
        part = cache / "part-00000.safetensors"
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
    else:
        succeeds(*words, "--overwrite", "--text-data", "null")
        (other,) = set((tmp_path / "cache").iterdir()) - {cache}
        shutil.rmtree(cache)
        other.rename(cache)
    before = files_under(tmp_path)
    refused(3, "cannot be trusted", *words, "--overwrite")
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("option", ["--dry-run", "--overwrite"])
def test_a_quantised_student_is_refused(option, settings, pruned, tmp_path) -> None:
    student = shutil.copytree(pruned, tmp_path / "rounded")
    (student / "run.json").unlink()
    about = json.loads((student / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (student / "config.json").write_text(json.dumps(about))
    flags = ("--student-model", student, *words_for(tmp_path), option)
    refused(3, "quantised weights", "knowledge_distillation", *settings, *flags)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["rounded"]


def test_a_student_that_another_run_is_writing(settings, pruned, tmp_path) -> None:
    with another_run_writing(tmp_path / "out"):
        words = ("knowledge_distillation", *settings, *words_for(tmp_path))
        refused(6, "another run", *words)
    assert leaves_nothing(tmp_path)


def test_the_model_card_names_teacher_and_figures(distilled) -> None:
    card = (distilled / "README.md").read_text(encoding="utf-8")
    figures = json.loads((distilled / "run.json").read_text())["metrics"]
    assert "taught by" in card and "merged_model" in card and "`distillation.alpha`" in card
    assert f"| `perplexity_after` | {figures['perplexity_after']:.4g} |" in card
    assert "perplexity is that of the validation rows" in card and "PeftModel" not in card
