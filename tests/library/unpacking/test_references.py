"""Every script takes a GGUF, or a name of Ollama's, for a model; a broken one ends in exit 3."""

import json
from pathlib import Path

import pytest
from running import files_under, refused, run, succeeds
from tiny_ggufs import put_into_ollama

FLAGS = {
    "prepare_data": "--base-model",
    "train_lora": "--base-model",
    "train_pruned_distilled": "--base-model",
    "evaluate_model": "--base-model",
    "model_pruning": "--model-path",
    "knowledge_distillation": "--student-model",
    "convert_to_gguf": "--model-path",
}


def settings_for(folder: Path, rows: Path, gguf: Path) -> tuple[str, Path]:
    """Settings whose outputs all lie in `folder`."""
    (folder / "config.yaml").write_text(
        f"model: {{base_model: {gguf}, device: cpu, prompt_template: llama2}}\n"
        f"data: {{input: {rows.parent}/raw.json}}\n"
        f"training: {{train_data: {rows}/train_train.jsonl, epochs: 1, max_length: 128}}\n"
        "lora: {output_dir: tuned}\n"
        "generation: {max_new_tokens: 12}\n"
        "evaluation: {lora_model: null, output: out/r.csv}\n",
        encoding="utf-8",
    )
    return "--config", folder / "config.yaml"


@pytest.mark.parametrize("script", FLAGS)
def test_a_broken_file_ends_in_exit_3_before_anything_is_written(script, rows, tmp_path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 16)
    settings = settings_for(tmp_path, rows, tmp_path / "x.gguf")
    before = files_under(tmp_path)
    error = refused(3, "damaged", script, *settings, FLAGS[script], tmp_path / "x.gguf")
    assert "x.gguf" in str(error)
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("script", FLAGS)
def test_a_dry_run_says_what_would_be_unpacked(script, settings, gguf, tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("model: {}\n")
    words = ("--config", tmp_path / "config.yaml", "--dry-run", FLAGS[script], gguf)
    ran = succeeds(script, *words)
    assert "would write" in ran.out and "unpacked/tiny-F16" in ran.out
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.usefixtures("in_process")
def test_from_a_gguf_to_an_adapter_and_back_beside_the_file(rows, gguf, tmp_path) -> None:
    words = settings_for(tmp_path, rows, gguf)
    ran = succeeds("train_lora", *words)
    base = tmp_path / "models/unpacked/tiny-F16"
    assert "unpacking" in ran.err and "not the original" not in ran.err  # F16 lost nothing
    card = json.loads((tmp_path / "tuned/lora_adapter/adapter_config.json").read_text())
    assert card["base_model_name_or_path"] == str(base)
    made = (base / "run.json").stat().st_mtime_ns
    adapter = ("--lora-model", tmp_path / "tuned/lora_adapter", "--models", gguf)
    compared = succeeds("evaluate_model", *words, *adapter)
    for said in (ran, compared):  # the step after is told in the words of this one
        following = said.out.rpartition("next:  ")[2]
        assert f"--base-model {gguf}" in following or "--base-model" not in following
        assert "unpacked" not in following
    assert f"--base-model {gguf}" in ran.out
    assert (base / "run.json").stat().st_mtime_ns == made
    found = json.loads((tmp_path / "out/r_metrics.json").read_text())
    labels = {one["label"]: one for one in found["models"]}
    unpacked, whole = labels["base"], labels["tiny-F16"]
    assert unpacked["exact_match"]["score"] == whole["exact_match"]["score"] > 90
    assert whole["perplexity"]["score"] == pytest.approx(unpacked["perplexity"]["score"], rel=1e-2)
    assert not {"tokenizer", "own_template"} & {one["kind"] for one in found["cautions"]}


def test_a_model_of_ollamas_store_as_a_base(rows, gguf, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(put_into_ollama(tmp_path / "store", "tiny:1", gguf)))
    (tmp_path / "config.yaml").write_text(f"data: {{input: {rows.parent}/raw.json}}\n")
    words = ("--config", tmp_path / "config.yaml", "--output-dir", tmp_path / "rows")
    said = succeeds("prepare_data", *words, "--base-model", "ollama:tiny:1").out
    assert "--base-model ollama:tiny:1" in said.rpartition("next:  ")[2]
    assert (tmp_path / "models/unpacked/tiny-1/tokenizer.model").is_file()
    report = json.loads((tmp_path / "rows/data_report.json").read_text())
    assert "token" in json.dumps(report)
    missing = run("prepare_data", *words, "--base-model", "ollama:other")
    assert missing.code == 3 and "ollama pull other" in missing.err


def test_a_folder_with_nothing_but_a_gguf_names_the_file(settings, gguf, tmp_path) -> None:
    """LM Studio keeps its models so."""
    folder = tmp_path / "author" / "model"
    folder.mkdir(parents=True)
    (folder / "model-Q4.gguf").write_bytes(gguf.read_bytes())
    words = (*settings, "--base-model", folder, "--lora-model", "null")
    error = refused(3, "no weights", "evaluate_model", *words)
    assert str(folder / "model-Q4.gguf") in str(error)
