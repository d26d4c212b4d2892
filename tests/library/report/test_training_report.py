"""The report: filled from records, honest where there are none, inert whatever a row says."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from slimtune.report import page
from slimtune.report.markdown import code, plain
from slimtune.report.measure_table import MEASURES, names_of
from slimtune.report.training_report import render_report

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


def perplexity(score: float) -> dict:
    return {"score": score, "low": score - 1, "high": score + 1, "verdict": "no clear change"}


def model(label: str, exact: float, size: int, **changes) -> dict:
    judged = {"score": exact, "low": exact - 3, "high": exact + 3, "verdict": "better"}
    return {
        "label": label,
        "reference": f"models/{label}",
        "adapter": None,
        "tokenizer": None,
        "trained": None,
        "kind": "model",
        **dict.fromkeys(names_of("quality"), judged),
        "perplexity": perplexity(4.0),
        "health": {"empty": 0.0, "without_eos": 20.0, "repeating": 0.0, "length_ratio": 1.5},
        "cost": {
            "parameters": 2_600_000,
            "bytes_on_disk": size,
            "load_seconds": 0.1,
            "prompt_tokens_per_second": 900.0,
            "generated_tokens_per_second": 100.0,
            "seconds": 30.0,
            "peak_memory_bytes": 6e8,
        },
        **changes,
    }


@pytest.fixture
def metrics() -> dict:
    quantised = {"kind": "gguf", "tokenizer": "models/tuned", "perplexity": perplexity(4.2)}
    return {
        "settings": {
            "rows": 300,
            "max_new_tokens": 64,
            "extract": "gsm8k",
            "leaked_rows": 3,
            "training_rows": 2000,
            "signatures": {"bleu": "tok:zh", "chrf": "nc:6"},
        },
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
                "scores": {"base": 0.0, "tuned": 50.0},
            }
        ],
    }


def html_of(report: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(report)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_empty_report_names_the_command_of_every_stage(language):
    report = render_report({}, None, language=language)
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
    report = render_report(lineage, metrics, language=language)
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


def test_verdict_names_the_best_the_smallest_and_the_doubts(metrics):
    lines = render_report({}, metrics).split("## Data")[0].splitlines()[2:5]
    assert "**tuned** answers 84.0 % of 300" in lines[0] and "base 2.0 %" in lines[0]
    assert "**tuned-Q4\\_K\\_M**: 3.0 MB, 30 % of base's 10.0 MB" in lines[1]
    assert "warnings below (1)" in lines[2]


def test_quantisation_is_measured_against_the_source(metrics):
    report = render_report({}, metrics)
    assert "against **tuned**: exact match -1.5 points, perplexity × 1.050, file 29 %" in report


def test_a_base_with_an_adapter_is_measured_against_the_folders_of_both(metrics):
    both = {"reference": "models/base", "adapter": "models/lora", "kind": "adapter"}
    files = {"kind": "gguf", "tokenizer": "models/base", "adapter": "l.gguf"}
    metrics["models"] += [
        model("fine-tuned", 84.0, 11_000_000, **both),
        model("base-Q8_0+l", 83.0, 5_500_000, **files, trained="models/lora"),
    ]
    report = render_report({}, metrics)
    assert "against **fine-tuned**: exact match -1.0 points, perplexity × 1.000" in report


def test_a_gguf_without_its_source_is_said_to_be_unpaired(metrics):
    del metrics["models"][1]
    assert "without the model it was made from" in render_report({}, metrics)


def test_the_curve_is_thinned_but_keeps_validations():
    curve = [{"step": s, "loss": 3 - s / 100} for s in range(100)]
    curve += [{"step": 37, "eval_loss": 1.25}]
    report = render_report({"train_lora": record("train_lora")}, None, curve=curve)
    table = report.split("validation loss |")[1].split("\n\n")[0].splitlines()[2:]
    assert 10 <= len(table) <= 14
    assert "| 37 | 2.6300 | 1.2500 |" in table


def test_a_measure_shows_its_interval_and_verdict(metrics):
    metrics["models"][1]["perplexity"] = None
    report = render_report({}, metrics)
    assert "| exact match % ↑ | 2.0 (-1.0–5.0) | 84.0 (81.0–87.0) ▲ | 82.5" in report
    assert "| perplexity ↓ | 4.00 (3.00–5.00) | – | 4.20" in report
    assert "3 (1.0 %) are among the 2,000 training rows" in report


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_measure_is_explained_in_one_line_with_its_direction(metrics, language):
    glossary = render_report({}, metrics, language=language).split("\n## ")[-1]
    for name, measure in MEASURES.items():
        assert f"| {measure.title(language)} | {measure.label(language).meaning} |" in glossary
        assert measure.arrow != "none" or name == "parameters"


def test_hostile_text_is_inert(metrics):
    metrics["models"][1]["label"] = HOSTILE
    html = html_of(render_report({"train_lora": record("train_lora")}, metrics))
    assert not re.search(r"<(script|img|a|h\d[^>]*>alert)\b", html)
    shown = "=cmd|'/C calc'!A0 &lt;script&gt;alert(1)&lt;/script&gt; ![x](http://evil.example"
    assert html.count(shown) >= 3
    heads = re.findall(r"<thead>(.*?)</thead>", html, re.S)
    assert [head.count("<th") for head in heads if "=cmd" in head] == [4, 4]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_inert_and_asks_nothing_of_the_net(metrics, language):
    metrics["models"][1]["label"] = HOSTILE
    metrics["samples"][0]["id"] = "${verdict}"
    runs = {stage: record(stage) for stage in STAGES}
    curve = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]
    html = page.render_page(runs, metrics, language=language, curve=curve)
    tags = Tags()
    tags.feed(html)
    assert not tags.names & {"script", "img", "a", "iframe", "link", "object", "form", "input"}
    assert not tags.attributes & {"src", "href", "onload", "onclick", "onerror", "srcset", "action"}
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html
    assert html.count("<svg") == 6  # three measures, two costs, the curve
    assert html.count("$") == html.count("${verdict}") + 2 * html.count("$b$")
    assert "&lt;script&gt;" in html


class Tags(HTMLParser):
    """Names of all tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_code_survives_backticks():
    assert "<code>a``b`</code>" in html_of(code("a``b`"))


def test_plain_cuts_what_is_endless():
    assert len(plain("x" * 1000)) < 500
    assert "\x1b" not in plain("a\x1b[31mred")
