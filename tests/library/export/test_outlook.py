"""The table of a dry run: sizes to the byte, losses that fall, memory, and what fits."""

import importlib
import json
from dataclasses import replace

import pytest

from slimtune.export import outlook
from slimtune.export.gguf_writer import write_file
from slimtune.export.preflight import preflight
from slimtune.settings import PROJECT


@pytest.fixture(scope="module")
def found(plan):
    return {line.name: line for line in outlook.lines(plan, "m")}


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M"])
def test_a_line_tells_the_size_that_the_file_will_have(plan, found, tmp_path, kind):
    (report,) = write_file({tmp_path / "m.gguf": replace(plan, quantization=kind)}, name="m")
    assert found[kind].bytes == report.bytes


def test_the_best_is_never_worse_and_grows_with_less_room(found):
    lines = sorted(found.values(), key=lambda line: line.bytes)
    assert {"smallest", "2.75 bits", "3 bits", "Q4_0"} <= {line.name for line in lines}
    best = [line.best for line in lines]
    assert best == sorted(best, reverse=True) and best[0] > 10 * best[-1]
    # The sensitivity here is no model's: what an encoder weighs columns by differs from it.
    assert all(line.best <= line.loss * 1.001 for line in lines if line.loss is not None)


def test_memory_is_the_tensors_and_the_cache(plan, found):
    """2 layers, 2 groups of 64, keys and values in F16, over the model's 256 positions."""
    cache = 2 * 2 * 128 * 256 * 2
    line = found["F16"]
    assert 0 < line.bytes - (line.memory - cache) < 20_000  # the header
    assert line.memory - cache - line.read == 400 * 256 * 2  # the embedding is looked up


def test_the_documents_tell_the_memory_of_this_table(plan, found, monkeypatch):
    """The table of bases is counted from config.json alone, by benchmarks/known_models.py."""
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    known = importlib.import_module("known_models")
    config = json.loads((plan.folder / "config.json").read_text(encoding="utf-8"))
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "head_dim")
    sizes = tuple(config[name] for name in names)
    tied = config.get("tie_word_embeddings", False)
    one = known.Known("tiny", config["model_type"], sizes, "llama2", tied)
    assert one.served(plan.architecture.context) == found["Q4_K_M"].memory


def test_without_sensitivity_sizes_are_told_and_losses_are_not(llama):
    plan = preflight(llama, "Q4_K_M")
    headers, rows = outlook.table(plan, "m")
    told = [dict(zip(headers, row, strict=True)) for row in rows]
    assert {row["loss"] for row in told} == {row["best"] for row in told} == {"–"}
    assert "--imatrix auto" in outlook.notes(plan, "m")["loss"]


def test_what_fits_where(plan, monkeypatch):
    monkeypatch.setattr(outlook.memory, "available_memory", lambda: 2_000_000)
    monkeypatch.setattr(outlook, "graphics_memory", lambda: 1_300_000)
    headers, rows = outlook.table(plan, "m")
    fits = {row[0]: row[headers.index("fits")] for row in rows}
    assert (fits["F16"], fits["Q8_0"], fits["smallest"]) == ("no", "RAM", "GPU")
    plots = {row[0]: row[-1] for row in rows}
    assert plots["Q4_0"].index("●") <= plots["Q4_0"].index("○") and plots["F16"].strip() == "●"


def test_a_gpu_is_asked_by_its_own_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 8000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert outlook.graphics_memory() == 8000 << 20
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert outlook.graphics_memory() is None
