"""Several models on the same rows: what a child reports, what the parent concludes and writes."""

import csv
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from markdown_it import MarkdownIt
from peft import LoraConfig, get_peft_model
from tiny_bpe import write_bpe_llama
from tiny_folders import swap_two_tokens, write_tiny_llama

from slimtune import prompts
from slimtune.config import Config, GenerationSection, Training
from slimtune.data.learned_rows import Learned
from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.evaluation import comparison as comparison_module
from slimtune.evaluation import worker
from slimtune.evaluation.comparison import Comparison, compare
from slimtune.evaluation.fairness import count_leaked
from slimtune.evaluation.outputs import (
    comparison_table,
    metrics_of,
    worst_rows,
    write_answers_csv,
    write_metrics,
)
from slimtune.inference import generation
from slimtune.inference.questions import Candidate
from slimtune.models import loading
from slimtune.report.measure_table import names_of, names_over
from slimtune.report.page import render_page
from slimtune.report.training_report import Found, render_report
from slimtune.report.words import sentence

LLAMA2 = prompts.template("llama2")
QUESTIONS = [
    ("What is 3 + 4?", "7"),
    ("今天天气怎么样？", "很好"),
    ("=cmd|' /C calc'!A0", "-5"),
    ("Name a pet.", "The cat sat on the mat."),
    ("去哪里？", "公园"),
]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [
        {
            "id": f"row{number}",
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ],
        }
        for number, (question, answer) in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "base")


def write_adapter(base: Path, folder: Path, *, trained: bool) -> Path:
    """A LoRA adapter; untrained means B = 0, as peft starts."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=not trained)
    get_peft_model(loading.load_model(base), config).save_pretrained(folder)
    return folder


def compared(candidates: list[Candidate], rows: list[dict], **settings) -> Comparison:
    length = settings.pop("max_length", 512)
    generation = GenerationSection(max_new_tokens=8)
    config = Config(training=Training(max_length=length), generation=generation)
    return compare(candidates, rows, LLAMA2, config, **{"isolated": False, **settings})


@pytest.fixture(scope="module", autouse=True)
def timed_once() -> Iterator[None]:
    """A speed is the median of fifteen runs, of which none is looked at here."""
    with patch.object(generation, "SPEED_RUNS", 1):
        yield


@pytest.fixture(scope="module")
def comparison(base, rows, tmp_path_factory) -> Comparison:
    other = write_tiny_llama(tmp_path_factory.mktemp("models") / "other", hidden=512)
    adapter = write_adapter(base, tmp_path_factory.mktemp("adapters"), trained=True)
    candidates = [
        Candidate("base", str(base)),
        Candidate("tuned", str(base), adapter=str(adapter)),
        Candidate("other", str(other)),
    ]
    return compared(candidates, rows)


def test_children_find_what_this_process_finds(base, rows, comparison, monkeypatch):
    """The spawned path, once: it costs an import of torch and transformers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = compared([Candidate("base", str(base))], rows, isolated=True)
    ours, theirs = comparison.outcomes[0], alone.outcomes[0]
    assert theirs.generations == ours.generations
    assert [loss.tokens for loss in theirs.losses] == [loss.tokens for loss in ours.losses]
    assert theirs.losses[0].nats == pytest.approx(ours.losses[0].nats, rel=1e-4)
    assert 50e6 < theirs.cost.peak_memory_bytes < 4e9


def test_an_error_crosses_from_child_to_parent_whole():
    error = pickle.loads(pickle.dumps(InputError("what", "why", "cure")))
    assert (type(error), error.what, error.why, error.cure) == (InputError, "what", "why", "cure")


def test_a_killed_child_is_a_matter_of_resources(base, rows, monkeypatch):
    monkeypatch.setattr(comparison_module, "start_logging", os.abort)  # the first act of a child
    monkeypatch.setattr(comparison_module._log, "handlers", [logging.NullHandler()])
    with pytest.raises(ResourceError, match="ended from outside"):
        compared([Candidate("base", str(base))], rows, isolated=True)


def test_the_parent_needs_no_torch():
    code = "import sys, slimtune.evaluation.outputs; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3] / "finetune",
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False", done.stderr


def test_measures_say_what_each_model_is_and_costs(base, comparison):
    first, tuned, other = comparison.measures
    assert [m["kind"] for m in comparison.measures] == ["model", "adapter", "model"]
    assert first["cost"]["parameters"] == loading.load_model(base).num_parameters()
    assert tuned["cost"]["parameters"] > first["cost"]["parameters"]
    assert tuned["cost"]["bytes_on_disk"] > first["cost"]["bytes_on_disk"]
    assert other["cost"]["parameters"] > tuned["cost"]["parameters"]
    assert first["cost"]["bytes_on_disk"] == (base / "model.safetensors").stat().st_size
    assert all(m["cost"]["generated_tokens_per_second"] > 0 for m in comparison.measures)


def test_the_baseline_does_not_differ_from_itself(comparison):
    first = comparison.measures[0]
    judged = [m for m in first.values() if isinstance(m, dict) and "verdict" in m]
    assert len(judged) == len(set(names_of("quality")) - set(names_over("divergences")))
    assert {m["verdict"] for m in judged} == {"no clear change"}


def test_an_adapter_without_effect_is_noticed(base, rows, tmp_path):
    adapter = write_adapter(base, tmp_path, trained=False)
    idle = Candidate("idle", str(base), adapter=str(adapter))
    found = compared([Candidate("base", str(base)), idle], rows).cautions
    assert {"label": "idle", "first": "base", "kind": "no_effect"} in found
    assert "idle: outputs identical to base" in " ".join(map(sentence, found))


def test_another_template_is_refused_before_any_model_is_asked(base, rows, tmp_path):
    other = write_tiny_llama(tmp_path / "other", template="alpaca")
    (other / "model.safetensors").unlink()  # asked, it would say so
    with pytest.raises(SettingsError, match="another prompt template than base") as error:
        compared([Candidate("base", str(base)), Candidate("other", str(other))], rows)
    assert "row0" in error.value.why


def test_the_bare_base_is_asked_as_its_adapter_was_trained(rows, tmp_path):
    base = write_tiny_llama(tmp_path / "base", template="alpaca")
    adapter = write_adapter(base, tmp_path / "adapter", trained=True)
    (adapter / "chat_template.jinja").write_text(LLAMA2, encoding="utf-8")
    bare, tuned = Candidate("base", str(base)), Candidate("t", str(base), adapter=str(adapter))
    questions = comparison_module.questions_of(rows, "whole")
    assert comparison_module.agreed_template([bare, tuned], "", questions) == LLAMA2
    assert comparison_module.agreed_template([bare], "", questions) == prompts.template("alpaca")


@pytest.fixture
def other_tokenizer(rows, tmp_path) -> tuple[Path, list[dict]]:
    """A model in whose vocabulary two tokens changed places, and rows that hold both."""
    folder = swap_two_tokens(write_tiny_llama(tmp_path / "other"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    swapped = "".join(list(vocabulary)[-2:])
    messages = [{"role": "user", "content": swapped * 3}, rows[0]["messages"][1]]
    return folder, [*rows, {"id": "swapped", "messages": messages}]


def test_another_tokenizer_leaves_out_what_does_not_compare(base, other_tokenizer):
    other, rows = other_tokenizer
    found = compared([Candidate("base", str(base)), Candidate("other", str(other))], rows)
    first, second = found.measures
    assert first["perplexity"] and second["perplexity"] is None and second["bits_per_byte"]
    assert second["kl_divergence"] is None and second["original"] == "base"
    assert "tokenizer" in [caution["kind"] for caution in found.cautions]
    assert "–" in comparison_table(found)[1][1]


def test_another_tokenizer_that_would_cut_elsewhere_is_refused(base, other_tokenizer):
    other, rows = other_tokenizer
    candidates = [Candidate("base", str(base)), Candidate("other", str(other))]
    with pytest.raises(InputError, match="cut elsewhere"):
        compared(candidates, rows, max_length=24)


def test_an_adapter_trained_for_another_base_of_the_same_shape_is_noticed(rows, tmp_path):
    bases = [
        write_tiny_llama(tmp_path / "a"),
        write_tiny_llama(tmp_path / "b", initializer_range=0.1),
    ]
    adapter = write_adapter(bases[0], tmp_path / "adapter", trained=True)
    moved = shutil.copytree(bases[0], tmp_path / "moved")
    for base, expected in ((bases[0], False), (moved, False), (bases[1], True)):
        tuned = Candidate("tuned", str(base), adapter=str(adapter))
        found = compared([Candidate("base", str(base)), tuned], rows[:1]).cautions
        assert ("other_base" in [caution["kind"] for caution in found]) is expected


def test_leaks_are_counted_whatever_their_case_and_width(base, rows, tmp_path):
    said = [("user", "ｎａｍｅ a  PET."), ("assistant", "A cat.")]
    leaked = [{"role": role, "content": text} for role, text in said]
    file = tmp_path / "rows_train.jsonl"
    file.write_text((json.dumps({"messages": leaked}) + "\n") * 2, encoding="utf-8")
    candidates = [Candidate("base", str(base))]
    found = compared(candidates, rows, learned=Learned((file,), ("another",)))
    assert (found.settings["leaked_rows"], found.settings["training_rows"]) == (1, 2)
    (told,) = [sentence(caution) for caution in found.cautions if caution["kind"] == "leak"]
    assert "1 of 5 test questions (20.0 %)" in told


def test_how_many_leaks_is_not_known_without_the_rows(rows, tmp_path):
    file = tmp_path / "rows_train.jsonl"
    file.write_text(json.dumps({"messages": rows[0]["messages"]}), encoding="utf-8")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("no row", encoding="utf-8")
    asked = comparison_module.questions_of(rows[1:], "whole")
    unknown = {"training_rows": None, "leaked_rows": None}
    for learned in (Learned((), ()), Learned((file,), ("a base",)), Learned((broken,), ())):
        assert count_leaked(asked, learned) == unknown
    assert count_leaked(asked, Learned((file,), ())) == {"training_rows": 1, "leaked_rows": 0}


def test_long_prompts_keep_their_end_and_are_counted(base, rows):
    cut = compared([Candidate("base", str(base))], rows, max_length=24)
    assert cut.outcomes[0].asked.shortened
    assert "shortened" in [caution["kind"] for caution in cut.cautions]


def test_a_gguf_answers_like_the_model_it_was_made_from(base, rows, tmp_path, comparison):
    from slimtune.export.gguf_writer import write_gguf

    write_gguf(base, tmp_path / "base.gguf", "F32")
    gguf = Candidate("gguf", str(tmp_path / "base.gguf"), tokenizer=str(base))
    found = compared([Candidate("base", str(base)), gguf], rows)
    texts = [[answer.text for answer in outcome.generations] for outcome in found.outcomes]
    assert texts[0] == texts[1]
    first, second = found.measures
    for name in ("perplexity", "token_accuracy"):
        assert second[name]["score"] == pytest.approx(first[name]["score"], rel=1e-3)
    assert 0 < second["kl_divergence"]["score"] < 1e-3
    assert second["first_choice_agreement"]["score"] > 95
    assert second["compared_tokens"] == second["reference_tokens"]
    assert second["cost"]["parameters"] == first["cost"]["parameters"]
    assert 1e6 < second["cost"]["peak_memory_bytes"] < 1e9


def test_what_an_original_expects_is_kept_until_nobody_needs_it(base, rows, tmp_path, monkeypatch):
    """A comparison that goes on asks the original again only for what is not on disk."""
    adapter = write_adapter(base, tmp_path / "adapter", trained=True)
    both = [Candidate("base", str(base)), Candidate("tuned", str(base), adapter=str(adapter))]
    kept = tmp_path / "kept"
    before = compared(both, rows, kept_in=kept).measures
    (expected,) = kept.glob("*.distributions")
    assert before[1]["kl_divergence"]["score"] > 0 and len(list(expected.iterdir())) == len(rows)
    opened, real = [], worker.open_engine
    monkeypatch.setattr(worker, "open_engine", lambda *a: opened.append(a[0].label) or real(*a))
    assert compared(both, rows, kept_in=kept).measures == before and not opened
    (expected / "3.u16").unlink()
    again = compared(both, rows, kept_in=kept).measures
    assert opened == ["base"] and (expected / "3.u16").is_file()
    assert again[1]["kl_divergence"] == before[1]["kl_divergence"]
    alone = compared(both[1:], rows, kept_in=kept).measures  # another original: none
    assert alone[0]["kl_divergence"] is None
    assert set(tmp_path.iterdir()) == {adapter, kept}


def test_only_some_rows_are_compared_where_all_would_fill_the_disk(
    base, rows, tmp_path, monkeypatch, caplog
):
    from slimtune.inference import distributions

    monkeypatch.setattr(distributions.sample_of, "__defaults__", (2 * 400 * 12,))
    other = write_tiny_llama(tmp_path / "other", initializer_range=0.1)
    with caplog.at_level("INFO"):
        both = [Candidate("base", str(base)), Candidate("other", str(other))]
        first, second = compared(both, rows).measures
    assert 0 < second["compared_rows"] < len(rows) and second["compared_tokens"] <= 12
    assert second["unscored_answers"] == 0
    assert f"{second['compared_rows']} of 5 rows are compared token by token" in caplog.text


def foreign_gguf(folder: Path, file: Path) -> Candidate:
    """A file without a record of where it came from, as from the net."""
    from slimtune.export.gguf_writer import write_gguf

    write_gguf(folder, file, "F32")
    return Candidate(file.stem, str(file))


def test_a_gguf_that_others_made_is_asked_with_its_own_vocabulary(base, rows, tmp_path):
    """Fed with the base's ids it would be worth nothing; with its own it is what its folder is."""
    chatml = write_tiny_llama(tmp_path / "chatml", template="chatml")
    other = write_bpe_llama(tmp_path / "other")
    gguf = foreign_gguf(other, tmp_path / "gguf.gguf")
    folder = Candidate("folder", str(other))
    found = compared([Candidate("base", str(chatml)), folder, gguf], rows)
    own, ours = found.outcomes[1:]
    assert [one.ids for one in ours.generations] == [one.ids for one in own.generations]
    assert [one.text for one in ours.generations] == [one.text for one in own.generations]
    assert ours.asked.digest == own.asked.digest != found.outcomes[0].asked.digest
    assert "perplexity" not in {k for k, v in found.measures[2].items() if v is not None}
    bits = [one["bits_per_byte"]["score"] for one in found.measures]
    assert bits[2] == pytest.approx(bits[1], rel=1e-3) and bits[2] != bits[0]
    assert {"kind": "tokenizer", "label": "gguf", "first": "base"} in found.cautions


def test_a_gguf_of_the_same_vocabulary_needs_no_caution(base, rows, tmp_path):
    gguf = foreign_gguf(base, tmp_path / "gguf.gguf")
    found = compared([Candidate("base", str(base)), gguf], rows)
    ids = [[answer.ids for answer in outcome.generations] for outcome in found.outcomes]
    assert ids[0] == ids[1]
    assert found.outcomes[0].asked == found.outcomes[1].asked
    assert found.settings["own_templates"] == []
    assert {"tokenizer", "own_template"} & {one["kind"] for one in found.cautions} == set()


def test_a_gguf_that_others_made_is_asked_with_its_own_template(base, rows, tmp_path):
    other = write_tiny_llama(tmp_path / "other", template="alpaca")
    gguf = foreign_gguf(other, tmp_path / "gguf.gguf")
    alone = compared([Candidate("other", str(other))], rows)
    found = compared([Candidate("base", str(base)), gguf], rows)
    own, ours = alone.outcomes[-1], found.outcomes[-1]
    assert own.asked == ours.asked != found.outcomes[0].asked
    nats = [[one.nats for one in each.losses] for each in (own, ours)]
    assert nats[0] == pytest.approx(nats[1], rel=1e-2)
    assert found.settings["own_templates"] == ["gguf"]
    (caution,) = [one for one in found.cautions if one["kind"] == "own_template"]
    assert "its own prompt template" in sentence(caution)
    assert found.measures[1]["perplexity"] is None
    assert found.measures[1]["bits_per_byte"] is not None


def test_two_models_of_one_name_are_refused(base, rows):
    with pytest.raises(SettingsError, match="'same'"):
        compared([Candidate("same", str(base))] * 2, rows)


def test_a_row_without_an_answer_is_named(base):
    row = {"id": "row9", "messages": [{"role": "user", "content": "?"}]}
    with pytest.raises(InputError, match="row9"):
        compared([Candidate("base", str(base))], [row])


def test_csv_opens_in_a_spreadsheet_and_runs_nothing(comparison, tmp_path):
    file = tmp_path / "results.csv"
    write_answers_csv(comparison, file)
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    with file.open(encoding="utf-8-sig", newline="") as handle:
        read = list(csv.DictReader(handle))
    assert [row["id"] for row in read] == [f"row{number}" for number in range(5)]
    assert read[2]["prompt"] == "'=cmd|' /C calc'!A0"
    assert read[2]["reference"] == "-5"
    assert read[1]["prompt"] == "今天天气怎么样？"
    for label, outcome in zip(comparison.labels, comparison.outcomes, strict=True):
        answer = read[4][f"{label} answer"].removeprefix("'")
        assert answer == outcome.generations[4].text.removeprefix("'")
        assert 0 <= float(read[4][f"{label} rouge_l"]) <= 100


HOSTILE = [
    "=cmd|' /C calc'!A0",
    "＝1+1",
    "@SUM(A1)",
    "+1+1|x",
    "-1+1",
    "\t=1",
    "<script>alert(1)</script>",
    "![](http://evil.example/i.png)",
    "a | b",
]


def test_a_hostile_row_is_inert_in_csv_markdown_and_html(base, tmp_path):
    """Question, reference and id of each row are hostile; the model's answer is what it is."""
    rows = [
        {
            "id": text,
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}],
        }
        for text in HOSTILE
    ]
    found = compared([Candidate("<b>base", str(base))], rows)
    write_answers_csv(found, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as handle:
        cells = [cell for row in csv.reader(handle) for cell in row]
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@＝") and len(cell) > 4]
    assert [text in cells or f"'{text}" in cells for text in HOSTILE] == [True] * len(HOSTILE)
    told = Found.of(metrics_of(found), {})
    markdown, html = render_report(told), render_page(told)
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    for page in (shown, html):
        own = page.replace('<b class="', "").replace('<a href="#', "")
        assert not re.search(r"<(script|img|a|b)[ >]", own)
        assert page.count("alert(1)") == page.count("&lt;script&gt;alert(1)") > 0


def test_metrics_are_plain_json_with_the_worst_samples(comparison, tmp_path):
    file = tmp_path / "metrics.json"
    write_metrics(comparison, file)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert [m["label"] for m in content["models"]] == ["base", "tuned", "other"]
    assert content["settings"]["rows"] == 5
    assert len(content["samples"]) == 5
    assert set(content["samples"][0]["answers"]) == {"base", "tuned", "other"}


def test_worst_rows_come_worst_first(comparison):
    shown = max((1, 2), key=lambda m: comparison.measures[m]["rouge_l"]["score"])
    scores = [comparison.scores[shown][row]["rouge_l"] for row in worst_rows(comparison)]
    assert scores == sorted(scores)


def test_table_has_a_row_a_model(comparison):
    headers, lines = comparison_table(comparison)
    assert [line[0] for line in lines] == ["base", "tuned", "other"]
    assert all(len(line) == len(headers) for line in lines)
