"""The test result on model cards: put there by a comparison, and nothing else of a card changed."""

import json

import pytest
from markdown_it import MarkdownIt
from tiny_reports import HOSTILE, metrics_of_three, record

from slimtune.report.model_card import write_derived_card
from slimtune.report.results_on_cards import put_results

OWN = "# My own words\n\nAsk me <b>anything</b>.\n"


@pytest.fixture
def models(tmp_path) -> dict:
    """metrics.json of three models; the folders base and tuned lie there as stages wrote them."""
    metrics = metrics_of_three()
    for model in metrics["models"]:
        model["reference"] = str(tmp_path / model["label"])
    for name in ("base", "tuned"):
        folder = tmp_path / name
        folder.mkdir()
        write_derived_card(folder, "owner/base", "pruned", {"parameters": 7}, base_folder=folder)
        files = {"README.md": {"sha256": "0", "bytes": 1}}
        run = record("model_pruning") | {"run_id": name, "files": files, "inputs": []}
        run |= {"started": "2026-01-01 00:00:00", "peak_memory_bytes": 1}
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return metrics


def test_a_comparison_tells_its_result_on_the_card_of_each_folder_of_ours(models, tmp_path) -> None:
    before = (tmp_path / "tuned/README.md").read_text(encoding="utf-8")
    assert "## Test" not in before
    assert put_results(models) == [tmp_path / "base/README.md", tmp_path / "tuned/README.md"]
    card = (tmp_path / "tuned/README.md").read_text(encoding="utf-8")
    assert "\nbase     2.0  █\ntuned   84.0  " + "█" * 34 + "\n" in card
    assert "84.0\u00a0(81.0–\u206087.0)" in card and "tuned-Q4" not in card
    assert str(tmp_path) not in card
    head, _, rest = card.partition("<!--")
    assert before.startswith(head) and before.endswith(rest.rpartition("-->")[2])
    assert "tuned" not in (tmp_path / "base/README.md").read_text(encoding="utf-8")


def test_another_comparison_replaces_the_result_and_no_word_of_the_owner(models, tmp_path) -> None:
    card = tmp_path / "tuned/README.md"
    put_results(models)
    card.write_text(OWN + card.read_text(encoding="utf-8") + "\nThe end.\n", encoding="utf-8")
    models["models"][1]["exact_match"] = models["models"][1]["exact_match"] | {"score": 50.0}
    put_results(models)
    text = card.read_text(encoding="utf-8")
    assert text.startswith(OWN) and text.endswith("\nThe end.\n")
    assert "50.0\u00a0(" in text and "84.0  █" not in text and text.count("## Test") == 1
    card.write_text(OWN, encoding="utf-8")  # the place is gone as well
    put_results(models)
    text = card.read_text(encoding="utf-8")
    assert text.startswith(OWN) and text.count("## Test") == 1
    put_results(models)
    assert card.read_text(encoding="utf-8") == text


def test_cards_that_are_not_ours_or_gone_stay_as_they_are(models, tmp_path, caplog) -> None:
    (tmp_path / "base/run.json").unlink()
    (tmp_path / "base/README.md").write_text(OWN, encoding="utf-8")
    (tmp_path / "tuned/README.md").unlink()
    assert put_results(models) == []
    assert (tmp_path / "base/README.md").read_text(encoding="utf-8") == OWN
    assert not (tmp_path / "tuned/README.md").exists()
    (tmp_path / "tuned/README.md").write_bytes(b"\xff\xfe")
    assert put_results(models) == [] and "is left out (UnicodeDecodeError" in caplog.text
    (tmp_path / "tuned/README.md").write_bytes(b" " * (1 << 20) + b"\n")
    assert put_results(models) == [] and "more than a megabyte" in caplog.text


def test_a_label_is_nothing_but_words(models, tmp_path) -> None:
    """On the Hub a card is a page: a folder's name must not become a picture, a script, a fence."""
    models["models"][1]["label"] = f"```\n{HOSTILE}"
    put_results(models)
    text = (tmp_path / "tuned/README.md").read_text(encoding="utf-8")
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<script" not in page and "<img" not in page and page.count("<pre>") == 2
