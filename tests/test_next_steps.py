"""Each script's `next:` runs as it is printed: one chain, in folders whose names need quotes."""

import json
import shlex
from pathlib import Path

import pytest
from running import Ran, compared_here, run, succeeds
from tiny_rows import raw_rows

from slimtune.sample import parts

SETTINGS = """\
model: {device: cpu}
training: {epochs: 1, learning_rate: 1e-2, batch_size: 4}
distillation: {epochs: 1}
generation: {max_new_tokens: 4}
gguf: {quantization: F16, verify: quick}
"""
LONGEST = 8  # scripts in a chain
FOLDER = "mein Projekt (1) [测试] it's $HOME"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Settings, rows and a base of one's own; nothing lies where the project's settings say."""
    from tiny_folders import write_tiny_llama

    folder = tmp_path_factory.mktemp("next") / FOLDER
    folder.mkdir()
    (folder / "my settings.yaml").write_text(SETTINGS, encoding="utf-8")
    write_tiny_llama(folder / "my base", hidden=64)
    raw = json.dumps(raw_rows(8), ensure_ascii=False)
    (folder / "raw (all).json").write_text(raw, encoding="utf-8")
    return folder


def next_of(ran: Ran) -> list[str]:
    """The words of the command that a script printed, as a shell would hand them on."""
    printed = ran.out.partition("next:  ")[2].splitlines()[0]
    python, script, *words = shlex.split(printed)
    assert python == "python" and Path(script).is_file()
    return [Path(script).stem, *words]


def goes_on(ran: Ran, *more: object) -> Ran:
    """The printed command ran dry, and now in earnest with `more` words."""
    script, *words = next_of(ran)
    assert "would write" in succeeds(script, *words, "--dry-run").out
    return succeeds(script, *words, *more)


def test_from_raw_rows_to_a_talk_with_the_file(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    base = ("--config", "my settings.yaml", "--base-model", "my base", "--max-length", 96)
    rows = ("--output-dir", "my rows", "--output-name", "问答", "--input", "raw (all).json")
    prepared = succeeds("prepare_data", *base, *rows, "--test-ratio", 0.2)
    tuned = goes_on(prepared, "--output-dir", "my models (1)")
    assert next_of(tuned)[1:3] == ["--config", "my settings.yaml"]
    with compared_here():
        compared = goes_on(tuned, "--output", "my 结果/r.csv", "--max-rows", 3)
        merged = compared_and_merged(compared)
        written = goes_on(merged, "--output-dir", "my gguf")
        again = goes_on(written, "--max-rows", 2, "--output", "my 结果/2/r.csv")
    # That one was asked of the base, the adapter and the file: all of one family.
    told = json.loads(Path("my 结果/2/r_metrics.json").read_text(encoding="utf-8"))
    assert [one["label"] for one in told["models"]][-1] == "my-base-finetuned-F16"
    script, *words = next_of(again)
    assert words[-1] != "--merge" and "--interactive" in words
    talked = succeeds(script, *words, stdin="/exit\n")
    assert "my-base-finetuned-F16" in talked.err


def compared_and_merged(compared: Ran) -> Ran:
    """The merged model lies beside the adapter, in the folder that training was given."""
    script, *words = next_of(compared)
    assert "--merge" in words and "--output" in words  # whose figures go into the card
    merged = goes_on(compared)
    assert "wrote  my models (1)/merged_model" in merged.out
    return merged


def test_from_a_pruned_model_to_what_distillation_brought(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    settings = ("--config", "my settings.yaml")
    if not Path("my rows").exists():
        rows = ("--output-dir", "my rows", "--output-name", "问答", "--test-ratio", 0.2)
        succeeds("prepare_data", *settings, *rows, "--input", "raw (all).json")
    data = ("--train-data", "my rows/问答_train.jsonl")
    cut = ("--model-path", "my base", "--output-dir", "cut 1", "--ffn-ratio", 0.25)
    pruned = succeeds("model_pruning", *settings, *data, *cut)
    assert "--train-data" in next_of(pruned)
    taught = goes_on(pruned, "--output-dir", "taught 1", "--cache-dir", "cache 1")
    with compared_here():
        goes_on(taught, "--max-rows", 2, "--output", "my 结果/3/r.csv")


def test_finished_output_is_not_named_again(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    there = folder / "there"
    (there / "lora_adapter").mkdir(parents=True)
    config = folder / "there.yaml"
    config.write_text(f"{SETTINGS}lora: {{output_dir: there}}\n", encoding="utf-8")
    words = ("prepare_data", "--config", "there.yaml", "--input", "raw (all).json")
    words += ("--output-dir", "rows 2", "--base-model", "my base")
    first = next_of(succeeds(*words))
    assert first[first.index("--output-dir") + 1] == "there-2" and "--overwrite" not in first
    second = next_of(succeeds(*words, "--overwrite"))
    assert "--output-dir" not in second and second[-1] == "--overwrite"
    assert run(*second, "--dry-run").code == 0


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """Settings of a folder that holds nothing else, and tiny models in place of the shipped."""
    from tiny_folders import write_tiny_llama

    folder = tmp_path_factory.mktemp("example")
    settings = f"sample: {{rows: 70, text_lines: 20}}\nevaluation: {{max_rows: 2}}\n{SETTINGS}"
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    for name in parts.SAMPLE_MODELS:
        write_tiny_llama(folder / "weights" / name, hidden=64)
    return folder


def to_the_end(ran: Ran) -> list[str]:
    """The scripts that ran, each as the one before it said, until one says of none."""
    scripts: list[str] = []
    while "next:  " in ran.out:
        assert len(scripts) < LONGEST, scripts
        script, *words = next_of(ran)
        scripts.append(script)
        ran = succeeds(script, *words, stdin="/exit\n")
    return scripts


@pytest.mark.slow
def test_every_chain_leads_from_the_sample_to_a_talk(example, monkeypatch) -> None:
    monkeypatch.chdir(example)
    monkeypatch.setattr(parts, "WEIGHTS", example / "weights")
    settings = ("--config", "config.yaml")
    with compared_here():
        tuned = to_the_end(succeeds("create_sample_data", *settings))
        healed = to_the_end(succeeds("model_pruning", *settings, "--ffn-ratio", 0.25))
        combined = to_the_end(succeeds("train_pruned_distilled", *settings))
    compared = merged = talked = "evaluate_model"
    file = ["convert_to_gguf", compared, talked]
    assert tuned == ["prepare_data", "train_lora", compared, merged, *file]
    assert healed == ["knowledge_distillation", compared, *file]
    assert combined == file
