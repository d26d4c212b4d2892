"""The report: filled from records, honest where there are none, inert whatever a row says."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from slimtune.data.markdown import code, plain
from slimtune.evaluation.cautions import _SENTENCES
from slimtune.evaluation.report import render

HOSTILE = "=cmd|'/C calc'!A0 <script>alert(1)</script> ![x](http://evil.example/i.png) | `a` # $b$"
STAGES = ["prepare_data", "train_lora", "merge", "model_pruning", "knowledge_distillation"]


def record(stage: str) -> dict:
    return {
        "command": [f"{stage}.py", "--input", "a b.json"],
        "settings": {"lora": {"rank": 8}, "pruning": {"ffn_ratio": 0.25}},
        "metrics": {"rows": {"kept": 1234}, "loss": 0.51234, "best": None, "note": HOSTILE},
        "seconds": 12.5,
        "peak_memory_bytes": 600_000_000,
        "machine": "Linux x86_64, 2 cores",
        "versions": {"python": "3.11", "torch": "2.13"},
        "git_commit": "abc123",
    }


def model(label: str, exact: float, size: int, **changes) -> dict:
    judged = {"score": exact, "low": exact - 3, "high": exact + 3, "verdict": "better"}
    return {
        "label": label,
        "reference": f"models/{label}",
        "tokenizer": None,
        "kind": "model",
        **dict.fromkeys(("exact_match", "rouge_1", "rouge_2", "rouge_l", "bits_per_byte"), judged),
        "perplexity": 4.0,
        "bleu": {"score": 50.0, "signature": "tok:zh"},
        "chrf": {"score": 60.0, "signature": "nc:6"},
        "health": {"empty": 0.0, "without_eos": 20.0, "repeating": 0.0},
        "cost": {
            "parameters": 2_600_000,
            "bytes_on_disk": size,
            "load_seconds": 0.1,
            "prompt_tokens_per_second": 900.0,
            "generated_tokens_per_second": 100.0,
            "peak_memory_bytes": 6e8,
        },
        **changes,
    }


@pytest.fixture
def metrics() -> dict:
    quantised = {"kind": "gguf", "tokenizer": "models/tuned", "perplexity": 4.2}
    return {
        "settings": {"rows": 300, "max_new_tokens": 64},
        "models": [
            model("base", 2.0, 10_000_000),
            model("tuned", 84.0, 10_500_000),
            model("tuned-Q4_K_M", 82.5, 3_000_000, **quantised),
        ],
        "cautions": [{"kind": "without_eos", "label": "base", "first": "base", "share": 20.0}],
        "samples": [
            {
                "id": "r1",
                "prompt": HOSTILE,
                "reference": "two\nlines",
                "answers": {"base": HOSTILE, "tuned": "ok"},
            }
        ],
    }


def html_of(report: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(report)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_empty_report_names_the_command_of_every_stage(language):
    report = render({}, None, language=language)
    for script in (
        "prepare_data",
        "train_lora",
        "model_pruning",
        "knowledge_distillation",
        "train_pruned_distilled",
        "convert_to_gguf",
        "evaluate_model",
    ):
        assert f"`python finetune/{script}.py" in report
    assert not re.search(r"\$\{|\{\w+\}", report)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_full_report_leaves_nothing_open(metrics, language):
    lineage = {stage: record(stage) for stage in [*STAGES, "convert_to_gguf"]}
    lineage |= {stage: record(stage) for stage in ("train_pruned_distilled", "evaluate_model")}
    report = render(lineage, metrics, language=language)
    assert not re.search(r"\$\{|\{\w+\}|not run|还没有", report)
    assert "python finetune/train_lora.py --input 'a b.json'" in report


def test_the_languages_have_the_same_places_and_sentences():
    folder = Path(__file__).parents[3] / "finetune"
    texts = [
        (folder / name).read_text(encoding="utf-8")
        for name in ("training_report.md", "training_report.zh-CN.md")
    ]
    places = [re.findall(r"\$\{\w+\}", text) for text in texts]
    assert places[0] == places[1]
    assert _SENTENCES["en"].keys() == _SENTENCES["zh"].keys()


def test_verdict_names_the_best_the_smallest_and_the_doubts(metrics):
    lines = render({}, metrics).split("## Data")[0].splitlines()[2:5]
    assert "**tuned** answers 84.0 % of 300" in lines[0] and "base 2.0 %" in lines[0]
    assert "**tuned-Q4\\_K\\_M**: 3.0 MB, 30 % of base's 10.0 MB" in lines[1]
    assert "warnings below (1)" in lines[2]


def test_quantisation_is_measured_against_the_source(metrics):
    report = render({}, metrics)
    assert "against **tuned**: exact match -1.5 points, perplexity × 1.050, file 29 %" in report


def test_a_gguf_without_its_source_is_said_to_be_unpaired(metrics):
    del metrics["models"][1]
    assert "without the model it was made from" in render({}, metrics)


def test_the_curve_is_thinned_but_keeps_validations():
    curve = [{"step": s, "loss": 3 - s / 100} for s in range(100)]
    curve += [{"step": 37, "eval_loss": 1.25}]
    report = render({"train_lora": record("train_lora")}, None, curve=curve)
    table = report.split("validation loss |")[1].split("\n\n")[0].splitlines()[2:]
    assert 10 <= len(table) <= 14
    assert "| 37 | 2.6300 | 1.2500 |" in table


def test_hostile_text_is_inert(metrics):
    metrics["models"][1]["label"] = HOSTILE
    page = html_of(render({"train_lora": record("train_lora")}, metrics))
    assert not re.search(r"<(script|img|a|h\d[^>]*>alert)\b", page)
    shown = "=cmd|'/C calc'!A0 &lt;script&gt;alert(1)&lt;/script&gt; ![x](http://evil.example"
    assert page.count(shown) >= 3
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    hostile = [row for row in rows if "=cmd" in row and "10.5 MB" in row]
    assert [row.count("<td") for row in hostile] == [7]


def test_code_survives_backticks():
    assert "<code>a``b`</code>" in html_of(code("a``b`"))


def test_plain_cuts_what_is_endless():
    assert len(plain("x" * 1000)) < 500
    assert "\x1b" not in plain("a\x1b[31mred")
