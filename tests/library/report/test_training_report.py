"""The report: filled from records, honest where there are none, inert whatever a row says."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from tiny_reports import HOSTILE, metrics_of_three, model, record, sample

from slimtune.report.markdown import anchor, code, plain
from slimtune.report.measure_table import MEASURES
from slimtune.report.page import render_page
from slimtune.report.stage_sections import SETTINGS, STAGES
from slimtune.report.training_report import Found, render_report
from slimtune.report.words import LANGUAGES
from slimtune.settings.flags import section_fields

CURVE = [{"step": 1, "loss": 3.0, "learning_rate": 1e-3}, {"step": 2, "loss": 2.0}]
CURVE += [{"step": 2, "eval_loss": 2.5}]


@pytest.fixture
def metrics() -> dict:
    return metrics_of_three()


def of(metrics: dict, *stages: str, **changes) -> Found:
    return Found(metrics, {stage: record(stage) for stage in stages}, **changes)


def html_of(report: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(report)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_not_part_of_the_comparison_is_named_with_its_command(metrics, language):
    report = render_report(of(metrics, "prepare_data"), language)
    absent = report.split(LANGUAGES[language].not_part)[1]
    for stage, command in STAGES.items():
        assert (f"`{command}`" in absent) is (stage != "prepare_data"), stage
    assert not re.search(r"\$\{|\{\w+\}", report)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_full_report_leaves_nothing_open(metrics, language):
    report = render_report(of(metrics, *STAGES), language)
    assert not re.search(r"\$\{|\{\w+\}", report)
    assert LANGUAGES[language].not_part not in report
    assert "python finetune/train_lora.py --input 'a b.json'" in report
    assert report.count("<details>") == report.count("</details>") == len(STAGES)


def test_a_chinese_report_has_no_key_of_a_record_and_its_own_punctuation(metrics):
    """`tokens_per_second` is a word of the record, not of a reader; names of files are code."""
    words, noted = LANGUAGES["zh"], record("train_lora")
    for path in words.figures:
        *section, name = path.split(".")
        place = noted["metrics"].setdefault(*section, {}) if section else noted["metrics"]
        place[name] = 1
    for path in words.settings:
        section, field = path.split(".")
        noted["settings"].setdefault(section, {})[field] = 1
    found = Found(metrics, dict.fromkeys(STAGES, noted), histories={"tuned": CURVE})
    report = render_report(found, "zh")
    assert "训练速度（token/秒）" in report and "`lora.target_modules`" in report
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", report, flags=re.DOTALL).replace("\\", "")
    assert re.findall(r"[a-z]+_\w+", prose) == []
    assert re.findall(r"[一-鿿] ?[:(]|[:(] ?[一-鿿]", prose) == []


def test_the_languages_have_the_same_places():
    folder = Path(__file__).parents[3] / "finetune"
    texts = [
        (folder / name).read_text(encoding="utf-8")
        for name in ("training_report.md", "training_report.zh-CN.md")
    ]
    places = [re.findall(r"\$\{\w+\}", text) for text in texts]
    assert places[0] == places[1]


def test_the_result_comes_first_then_how_it_came_about_then_the_figures(metrics):
    report = render_report(of(metrics, *STAGES))
    ahead = [
        "**better**",
        "## Size and quality",
        "## What each step",
        "## Questions",
        "## The loss",
    ]
    ahead += ["## Warnings", "## All measures", "## Speed and memory", "<details><summary>Data"]
    places = [report.index(one) for one in ahead]
    assert places == sorted(places)


def test_verdict_names_the_best_the_smallest_and_the_doubts(metrics):
    lines = render_report(of(metrics)).splitlines()[2:5]
    assert "**tuned** answers 84.0 % of 300" in lines[0] and "base 2.0 %" in lines[0]
    assert "**better** (95 % interval of tuned: 81.0–\u206087.0 %)" in lines[0]
    assert "**tuned-Q4\\_K\\_M**: 3.0 MB, 30 % of base's 10.0 MB" in lines[1]
    assert "All [warnings](#warnings) (1) are about **base**" in lines[2]
    metrics["cautions"].append({"kind": "worse", "label": "tuned", "first": "base"})
    assert "**Read the [warnings](#warnings) (2)**" in render_report(of(metrics)).splitlines()[4]


def test_where_no_answer_is_ever_word_for_word_the_overlap_decides(metrics):
    for one, overlap in zip(metrics["models"], (10.0, 30.0, 40.0), strict=True):
        one["exact_match"] = {"score": 0.0, "low": 0.0, "high": 1.3, "verdict": "no clear change"}
        one["rouge_l"] = {**one["rouge_l"], "score": overlap}
    first = render_report(of(metrics)).splitlines()[2]
    assert "**tuned-Q4\\_K\\_M** shares 40.0 %" in first and "base 10.0 %: **better**" in first
    assert "| ROUGE-L |" in render_report(of(metrics))


def test_a_model_alone_and_sizes_that_nobody_knows(metrics):
    only = metrics["models"][0]
    only["cost"] = {**only["cost"], "bytes_on_disk": None}
    metrics["models"] = [only]
    for language in LANGUAGES:
        words = LANGUAGES[language]
        for report in (render_report(of(metrics), language), render_page(of(metrics), language)):
            assert words.no_steps in report and words.no_sizes in report


def test_steps_tell_of_the_source_what_they_brought_and_what_they_cost(metrics):
    models = metrics["models"]
    models[1]["made_from"], models[2]["made_from"] = "base", "tuned"
    models[2]["exact_match"] = {**models[2]["exact_match"], "verdict_made_from": "worse"}
    models[2]["kl_divergence"] = {**models[2]["kl_divergence"], "score": 0.005}
    models[2]["original"] = "tuned"
    made = {"tuned": {**record("train_lora"), "seconds": 125.0}}
    report = render_report(of(metrics, made=made))
    assert "| tuned from base | +82.0\u00a0points\u00a0▲ | 105 % of the size" in report
    assert "made in 2 min 5 s and 600.0 MB of memory |" in report
    assert "| tuned-Q4\\_K\\_M from tuned | -1.5\u00a0points\u00a0▼ | 29 % of the size" in report
    assert "KL divergence from tuned 0.0050 nats |" in report
    assert report.count("KL divergence from") == 1  # what was trained is meant to differ
    models[1]["made_from"] = None
    assert "| tuned beside base |" in render_report(of(metrics))


def test_the_curve_is_thinned_but_keeps_validations(metrics):
    curve = [{"step": s, "loss": 3 - s / 100} for s in range(100)]
    curve += [{"step": 37, "eval_loss": 1.25}]
    report = render_report(of(metrics, histories={"tuned": curve}))
    table = report.split("validation loss |")[1].split("\n\n")[0].splitlines()[2:]
    assert 10 <= len(table) <= 14
    assert "| 37 | 2.6300 | 1.2500 |" in table
    assert "lowest at step 37, 1.2500 nats a token" in report


def test_a_measure_shows_its_interval_and_verdict_which_no_line_end_parts(metrics):
    metrics["models"][1]["perplexity"] = None
    report = render_report(of(metrics))
    line = next(one for one in report.splitlines() if one.startswith("| exact match % ↑ |"))
    shown = line.replace("\u00a0", " ").replace("\u2060", "")
    assert shown.startswith("| exact match % ↑ | 2.0 (-1.0–5.0) | 84.0 (81.0–87.0) ▲ | 82.5")
    assert all(" " not in cell and "–\u2060" in cell for cell in line.split(" | ")[1:3])
    assert "| – | 4.20" in next(one for one in report.splitlines() if "perplexity ↓" in one)
    assert "3 (1.0 %) are among the 2,000 rows that these" in report


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_that_were_drawn_by_chance_are_said_to_be(metrics, language):
    metrics["settings"]["decoding"] = "temperature 0.7, seed 5"
    assert "temperature 0.7, seed 5" in render_report(of(metrics), language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_measure_is_explained_in_one_line_with_its_direction(metrics, language):
    glossary = render_report(of(metrics), language).split("\n## ")[-1]
    for name, measure in MEASURES.items():
        assert f"| {measure.title(language)} | {measure.label(language).meaning} |" in glossary
        assert measure.arrow != "none" or name == "parameters"


def test_a_stage_is_told_of_in_words_and_not_in_keys(metrics):
    report = render_report(of(metrics, "train_lora"))
    section = report.split("<details><summary>Fine-tuning")[1].split("</details>")[0]
    assert "| steps | 12 |" in section and "| rank of the adapter `lora.rank` | 8 |" in section
    assert "| size of the file | 5.0 MB |" in section and "| 13.2% |" in section
    assert "0.5123" not in section  # a figure that no word explains stays in run.json


def test_a_target_that_was_not_set_is_not_told_of(metrics):
    found = of(metrics, "convert_to_gguf")
    found.lineage["convert_to_gguf"]["settings"] = {
        "gguf": {"quantization": ["Q4_K_M"], "target_size": None, "target_bits": 4.5}
    }
    section = render_report(found).split("<details><summary>Quantisation")[1]
    assert "`gguf.target_bits` | 4.5 |" in section and "gguf.target_size" not in section


def test_the_settings_that_reports_show_are_there_and_have_words():
    shown = {path for paths in SETTINGS.values() for path in paths}
    for path in shown:
        section, field = path.split(".")
        assert field in section_fields(section), path
    for words in LANGUAGES.values():
        assert words.settings.keys() == shown
        assert words.stage_titles.keys() == STAGES.keys()


def test_hostile_text_is_inert(metrics):
    metrics["models"][1]["label"] = HOSTILE
    for one in (metrics["samples"][0], metrics["random_samples"][0]):
        for key in ("answers", "scores", "right"):
            one[key][HOSTILE] = one[key].pop("tuned")
    found = of(metrics, "prepare_data", histories={HOSTILE: CURVE})
    html = html_of(render_report(found))
    own = html.replace('<a href="#', "")
    assert not re.search(r"<(script|img|a|h\d[^>]*>alert)\b", own)
    shown = "=cmd|'/C calc'!A0 &lt;script&gt;alert(1)&lt;/script&gt; ![x](http://evil.example"
    assert html.count(shown) >= 9
    heads = re.findall(r"<thead>(.*?)</thead>", html, re.S)
    assert [head.count("<th") for head in heads if "=cmd" in head] == [4, 4]
    assert own.count("<h3>") == 3  # two kinds of rows, one curve


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_inert_and_asks_nothing_of_the_net(metrics, language):
    metrics["models"][1]["label"] = HOSTILE
    for one in (metrics["samples"][0], metrics["random_samples"][0]):
        for key in ("answers", "scores", "right"):
            one[key][HOSTILE] = one[key].pop("tuned")
    metrics["samples"][0]["prompt"] = "${verdict} {source} <b onclick=alert(1)>\x1b[31m\u202e"
    html = render_page(of(metrics, *STAGES, histories={HOSTILE: CURVE}), language)
    tags = Tags()
    tags.feed(html)
    assert not tags.names & {"script", "img", "iframe", "link", "object", "form", "input"}
    assert not tags.attributes.keys() & {"src", "onload", "onclick", "onerror", "srcset", "action"}
    assert all(target.startswith("#") for target in tags.attributes["href"])
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html
    assert html.count("$") == 1 + 2 * html.count("$b$")  # "${verdict}", once
    assert "&lt;script&gt;" in html and "\x1b" not in html and "\u202e" not in html


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_contents_lead_to_every_section(metrics, language):
    html = render_page(of(metrics), language)
    tags = Tags()
    tags.feed(html.split("<nav")[1].split("</nav>")[0])
    ids = re.findall(r'<section id="(.*?)">', html)
    assert [MarkdownIt().normalizeLink(f"#{one}") for one in ids] == tags.attributes["href"]
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert [anchor(one) for one in headings] == ids and len(ids) == 11
    report = render_report(of(metrics), language)
    assert all(f"[{one}](#{anchor(one)})" in report for one in headings)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_picture_of_the_page_is_drawn_for_both_widths(metrics, language):
    html = render_page(of(metrics, histories={"tuned": CURVE}), language)
    words = LANGUAGES[language]
    for title in (words.loss_title.format(label="tuned"), words.size_title.split("{")[0]):
        assert html.count(f'aria-label="{title}') == 2
    assert html.count('<svg class="wide"') == html.count('<svg class="narrow"') == 2
    rows = len(metrics["models"])
    plotted = sum(measure.plot for measure in MEASURES.values())
    assert html.count('<svg class="track"') == rows + plotted * rows


def test_answers_stand_side_by_side_and_the_other_ones_are_folded(metrics):
    metrics["samples"] = [sample(f"question {n}") for n in range(5)]
    html = render_page(of(metrics))
    questions = re.findall(r"<h4>(.*?)</h4>", html)
    assert questions == ["Is it?", *(f"question {n}" for n in range(5))]
    first = html.split('<article class="sample">')[1].split("</article>")[0]
    pair, folded = first.split("<details>")
    assert re.findall(r"<h5>(\S+) <span class=\"(\w+)\">", pair) == [
        ("base", "worse"),
        ("tuned", "better"),
    ]
    assert re.findall(r"<h5>(\S+) <span", folded) == ["tuned-Q4_K_M"]
    assert "two<br>lines" in pair and "wrong, 7 % of the words" in pair
    assert html.index("2 more of the worst") < html.index("question 3")


class Tags(HTMLParser):
    """Names of all tags of a page, and the values of all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.names.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)


def test_a_model_folder_brings_its_record_and_its_curve(metrics, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    metrics["models"].append(model("trained", 50.0, 9_000_000, reference=str(tmp_path)))
    found = Found.of(metrics, {})
    assert found.histories == {"trained": [{"step": 1, "loss": 2.0}]} and found.made == {}


def test_code_survives_backticks():
    assert "<code>a``b`</code>" in html_of(code("a``b`"))


def test_plain_cuts_what_is_endless():
    assert len(plain("x" * 1000)) < 500
    assert "\x1b" not in plain("a\x1b[31mred")
