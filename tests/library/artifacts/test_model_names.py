"""What a model is called when nobody says: after its base and what was done to it."""

from pathlib import Path

import pytest
from hostile import write_record

from slimtune.artifacts.model_names import SAMPLE, automatic_name, own_name
from slimtune.models.ollama_store import require_name


def made(folder: Path, stage: str, *inputs: Path | str) -> Path:
    folder.mkdir(parents=True)
    told = [{"path": str(one), "run_id": None} for one in inputs]
    write_record(folder / "run.json", {}, stage=stage, inputs=told)
    return folder


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("/w/Llama-3.2-1B/", "llama-3.2-1b"),
        ("/c/models--org--Tiny--Chat/snapshots/" + "0a" * 20, "chat"),
        ("/home/ann/support bot (2)/models/finetuned/merged_model", "support-bot-2"),
        ("/w/tiny/checkpoint-120", "tiny"),
        ("/w/qwen3-0.6b-Q8_0.gguf", "qwen3-0.6b-q8_0"),
        ("/客服/模型", None),
        ("/models/base", None),
    ],
)
def test_the_first_telling_name(reference, name) -> None:
    assert own_name(reference) == name


def test_no_model_is_called_after_the_user() -> None:
    assert own_name(str(Path.home() / "models/base")) is None


BASE = "SmolLM2-135M-Instruct"


@pytest.mark.parametrize("base", [f"HuggingFaceTB/{BASE}", f"/gone/{BASE}"])
def test_each_step_is_in_the_name_once(base, tmp_path) -> None:
    adapter = made(tmp_path / "tuned/lora_adapter", "train_lora", base, tmp_path / "rows.jsonl")
    merged = made(tmp_path / "tuned/merged_model", "merge", adapter, base)
    name, reason = automatic_name(merged)
    assert name == "smollm2-135m-instruct-finetuned" and reason == f"after {base}"
    cut = made(tmp_path / "pruned", "model_pruning", merged)
    taught = made(tmp_path / "distilled", "knowledge_distillation", cut)
    again = made(tmp_path / "final", "train_pruned_distilled", tmp_path / "lora_adapter", taught)
    assert automatic_name(again)[0] == "smollm2-135m-instruct-finetuned-pruned-distilled"


def test_an_adapter_that_is_merged_on_the_way_counts(tmp_path) -> None:
    plain, _ = automatic_name("org/Tiny")
    assert plain == "tiny" and automatic_name("org/Tiny", tmp_path)[0] == "tiny-finetuned"


def test_the_sample_keeps_its_name_whatever_is_done_to_it(tmp_path) -> None:
    base = made(tmp_path / "sample", "create_sample_data", tmp_path / "raw.json") / "base"
    base.mkdir()
    cut = made(tmp_path / "pruned", "model_pruning", base)
    assert automatic_name(cut)[0] == SAMPLE


def test_an_unpacked_file_has_its_folders_name(tmp_path) -> None:
    unpacked = made(tmp_path / "qwen3-0.6b", "unpack", "/usr/share/blobs/sha256-0a1b")
    assert automatic_name(unpacked)[0] == "qwen3-0.6b"


def test_records_that_name_each_other_come_to_an_end(tmp_path) -> None:
    one = made(tmp_path / "One", "model_pruning", tmp_path / "Two")
    made(tmp_path / "Two", "model_pruning", one)
    assert automatic_name(one)[0] == "two-pruned"


@pytest.mark.parametrize("base", ["/客服", "/x/" + "L" * 200, "/x/-.-a b@c"])
def test_ollama_takes_every_name(base, tmp_path) -> None:
    cut = made(tmp_path / "pruned", "model_pruning", base)
    taught = made(tmp_path / "distilled", "knowledge_distillation", cut)
    require_name(automatic_name(taught, tmp_path)[0] + "-2")
