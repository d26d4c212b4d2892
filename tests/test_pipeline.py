"""All eight scripts' work, one after another: a trained Llama and sixty rows.

Where they are there, stories260K (260 thousand parameters) with English school maths and, in
`--all`, with Chinese instructions (Alpaca); else a Llama that has learned a page, with the sample's
rows. Each is far
too small for its rows; what counts is that every stage fits the next.
"""

import json
import re
from itertools import islice
from os.path import commonprefix
from pathlib import Path

import pytest
import torch
from originals import DATA, originals
from running import compared_here, succeeds
from transformers import AutoModelForCausalLM, PreTrainedModel

from slimtune import prompts, sample
from slimtune.export.quant_types import TIE
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers
from slimtune.report.words import LANGUAGES

pytestmark = pytest.mark.slow

ROWS = 60
OURS = "sample.json"
CHINESE = pytest.param(("alpaca_zh_demo.json", "alpaca"), marks=pytest.mark.long)
ORIGINALS = originals("stories260K", CHINESE, ("gsm8k_train.jsonl", "qa"))
TYPES = ("F16", "Q8_0", "Q4_K_M")
MODELS = ("tuned/merged_model", "pruned", "distilled", "small/final") + tuple(
    f"gguf/stories-{one}.gguf" for one in TYPES
)
SETTINGS = """\
model: {base_model: %s, device: cpu}
data: {output_dir: rows, validation_ratio: 0.1, test_ratio: 0.15}
lora: {output_dir: tuned}
# With 512 pieces a Chinese character takes three tokens, so some rows lose the start of a prompt.
training:
  {train_data: rows/train_train.jsonl, epochs: 1, batch_size: 8, max_truncated_share: 1,
   learning_rate: 5e-3, evaluations_per_epoch: 1}
pruning: {model_path: tuned/merged_model, output_dir: pruned}
distillation:
  {teacher_model: tuned/merged_model, student_model: pruned, output_dir: distilled,
   cache_dir: cache, text_data: text.txt, text_passages: 30, epochs: 1}
pruned_distilled: {output_dir: small}
generation: {max_new_tokens: 8}
evaluation: {lora_model: tuned/lora_adapter, output: evaluation/results.csv}
gguf: {model_path: tuned/merged_model, output_dir: gguf, model_name: stories, verify: quick}
"""


def first_rows(name: str, folder: Path) -> Path:
    """The first rows of a real file, in the same format; of the sample for its own name."""
    file, source = folder / name, DATA / "instruct" / name
    if name == OURS:
        rows = sample.rows(seed=1, count=ROWS)
        file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif source.suffix == ".jsonl":
        with source.open(encoding="utf-8") as stream:
            file.write_text("".join(islice(stream, ROWS)), encoding="utf-8")
    else:
        rows = json.loads(source.read_text(encoding="utf-8"))[:ROWS]
        file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


def base_and_text(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A trained model, and plain text that it is given in distillation."""
    if ORIGINALS:
        text = (DATA / "text" / "tinystories.txt").read_text(encoding="utf-8")
        return DATA / "stories260K", text[:20_000]
    return request.getfixturevalue("taught_llama"), "\n".join(sample.world_text(seed=1, lines=60))


@pytest.fixture(scope="module", params=ORIGINALS or [(OURS, "alpaca")])
def project(request, tmp_path_factory) -> Path:
    """The folder in which the scripts have run one after another."""
    name, format_type = request.param
    folder = tmp_path_factory.mktemp("pipeline")
    base, text = base_and_text(request)
    (folder / "config.yaml").write_text(SETTINGS % base, encoding="utf-8")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    settings = ("--config", folder / "config.yaml")
    raw = first_rows(name, folder)
    succeeds("prepare_data", *settings, "--input", raw, "--format-type", format_type)
    chosen = ",".join(str(folder / model) for model in MODELS)
    with compared_here():
        succeeds("train_lora", *settings)
        succeeds("evaluate_model", *settings, "--merge")
        succeeds("model_pruning", *settings)
        succeeds("knowledge_distillation", *settings)
        # What it measures itself is asked once more below, of the same model.
        succeeds("train_pruned_distilled", *settings, "--stages", "prune,cache,distil,lora,merge")
        for quantization in TYPES:
            succeeds("convert_to_gguf", *settings, "--quantization", quantization)
        succeeds("evaluate_model", *settings, "--models", chosen)
    return folder


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_every_row_is_accounted_for(project) -> None:
    files = sorted((project / "rows").glob("*.jsonl"))
    assert [file.name for file in files] == [
        "rejected.jsonl",
        "train_test.jsonl",
        "train_train.jsonl",
        "train_validation.jsonl",
    ]
    assert sum(len(file.read_text("utf-8").splitlines()) for file in files) == ROWS
    assert all(file.stat().st_size for file in files[1:])


def test_training_and_distillation_lower_the_loss(project) -> None:
    for stage in ("tuned/lora_adapter", "distilled", "small/distilled", "small/lora_adapter"):
        lines = (project / stage / "metrics.jsonl").read_text().splitlines()
        losses = [one["eval_loss"] for one in map(json.loads, lines) if "eval_loss" in one]
        assert min(losses) < losses[0], stage


def test_the_pruned_models_are_smaller(project) -> None:
    base = AutoModelForCausalLM.from_pretrained(project / "tuned/merged_model").num_parameters()
    for stage in ("pruned", "distilled", "small/final"):
        model = AutoModelForCausalLM.from_pretrained(project / stage)
        assert model.num_parameters() < 0.9 * base, stage
        assert model.config.intermediate_size == 128  # 172 less a third, in steps of 32


def test_llama_cpp_says_what_transformers_says(project) -> None:
    merged = project / "tuned/merged_model"
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    tokenizer, template = (
        tokenizers.load_tokenizer(merged),
        (merged / "chat_template.jinja").read_text(),
    )
    files = [project / f"rows/train_{split}.jsonl" for split in ("test", "validation", "train")]
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    asked = [json.loads(line)["messages"][:-1] for line in lines]
    ids = [prompts.encode_prompt(tokenizer, messages, template) for messages in asked]
    ids = [one for one in ids if len(one) < 400][:8]  # few: Chinese takes three tokens a sign
    assert len(ids) == 8
    with LlamaCpp(project / "gguf/stories-F16.gguf", context=512, slots=4) as gguf:
        theirs = [answer.ids for answer in gguf.generate(ids, Decoding(40))]
    assert template == prompts.template("llama2")
    for prompt, answer in zip(ids, theirs, strict=True):
        said = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0]
        ours = [one for one in said[len(prompt) :].tolist() if one != tokenizer.eos_token_id]
        assert ours == answer or first_gap(model, prompt, ours, answer) < TIE


def first_gap(
    model: PreTrainedModel, prompt: list[int], ours: list[int], theirs: list[int]
) -> float:
    """Nats between the two likeliest tokens where two answers part."""
    shared = len(commonprefix([ours, theirs]))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ours[:shared]])).logits[0, -1]
    first, second = logits.topk(2).values
    return float(first - second)


def test_k_quants_fall_back_where_rows_are_short(project) -> None:
    runs = {
        name: json.loads((project / f"gguf/stories-{name}_run.json").read_text())["metrics"]
        for name in ("F16", "Q8_0", "Q4_K_M")
    }
    assert not runs["F16"]["fallbacks"] and runs["Q4_K_M"]["fallbacks"]
    assert runs["Q4_K_M"]["bytes"] < runs["Q8_0"]["bytes"] < runs["F16"]["bytes"]


def test_the_comparison_tells_the_models_apart(project) -> None:
    metrics = json.loads((project / "evaluation/results_metrics.json").read_text())
    models = {one["label"]: one for one in metrics["models"]}
    assert list(models) == ["base", "fine-tuned", "merged", "pruned", "distilled", "small"] + [
        f"stories-{one}" for one in TYPES
    ]
    perplexity = {label: one["perplexity"]["score"] for label, one in models.items()}
    assert perplexity["fine-tuned"] < perplexity["base"]
    assert perplexity["distilled"] < perplexity["pruned"]
    for label in ("merged", "stories-F16"):
        assert perplexity[label] == pytest.approx(perplexity["fine-tuned"], rel=0.01), label
    # Rows it cannot answer, 7.8 nats a token: on 64 channels 8 bits cost 0.045 nats, 4 bits 0.19.
    assert perplexity["stories-Q8_0"] == pytest.approx(perplexity["stories-F16"], rel=0.1)
    assert perplexity["stories-Q4_K_M"] == pytest.approx(perplexity["stories-F16"], rel=0.3)
    sizes = [models[f"stories-{one}"]["cost"]["bytes_on_disk"] for one in TYPES]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("stage", ["train_lora", "merge", "model_pruning", "convert_to_gguf"])
def test_the_report_tells_of_every_stage(project, stage) -> None:
    report = (project / "evaluation/training_report.md").read_text("utf-8")
    assert f"<details><summary>{LANGUAGES['en'].stage_titles[stage]}" in report
    assert not re.search(r"\$\{?[a-z]", report.split("## Questions")[0])


def test_every_output_names_what_it_was_made_from(project) -> None:
    merged = record(project / "tuned/merged_model")
    assert record(project / "tuned/lora_adapter")["run_id"] in [
        one["run_id"] for one in merged["inputs"]
    ]
    assert merged["run_id"] in [one["run_id"] for one in record(project / "pruned")["inputs"]]
