"""llama.cpp's own programs where ours ends: what they are asked, and what their failure says."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from running import refused, succeeds
from tiny_folders import write_tiny_llama
from tiny_pipelines import edit_json

from slimtune.errors import ResourceError
from slimtune.export import convert
from slimtune.export.ggml import Encoder, find_encoder
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.plan import Encoding
from slimtune.inference.llama_library import shared_object


def fake_program(file: Path, lines: str) -> Path:
    """A program that appends its words to FILE.log and runs `lines` of Python."""
    file.parent.mkdir(parents=True, exist_ok=True)
    head = f"#!{sys.executable}\nimport sys, shutil\nopen({str(file)!r} + '.log', 'a')"
    file.write_text(f"{head}.write(' '.join(sys.argv[1:]) + '\\n')\n{lines}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


@pytest.fixture
def without_library(monkeypatch):
    """A machine on which no ggml library loads; PATH holds nothing but what a test adds."""
    monkeypatch.setattr(convert, "find_encoder", lambda _: Encoder(None))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)


@pytest.fixture
def words(llama, tmp_path):
    """convert_to_gguf of a model whose rows take K-quants, unproven, into tmp_path/out."""
    (tmp_path / "config.yaml").write_text("{}")
    base = ("--config", tmp_path / "config.yaml", "--model-path", llama, "--model-name", "m")
    return (*base, "--verify", "off", "--output-dir", tmp_path / "out")


def test_llama_quantize_makes_k_quants_from_a_temporary_file(
    words, llama, tmp_path, monkeypatch, without_library, caplog
):
    tool = fake_program(tmp_path / "bin" / "llama-quantize", "shutil.copy(*sys.argv[-3:-1])")
    monkeypatch.setenv("PATH", str(tool.parent))
    with caplog.at_level("INFO"):
        succeeds("convert_to_gguf", *words, "--quantization", "Q4_K_M,Q8_0")
    assert "llama-quantize writes m-Q4_K_M.gguf from a temporary F16 file" in caplog.text
    source, output, name = Path(f"{tool}.log").read_text().split()
    assert name == "Q4_K_M" and not Path(source).exists()
    # The fake one copies: what it was given is the F16 file.
    write_gguf(llama, tmp_path / "half.gguf", "F16", name="m")
    assert (tmp_path / "out/m-Q4_K_M.gguf").read_bytes() == (tmp_path / "half.gguf").read_bytes()
    files = {path.name for path in (tmp_path / "out").glob("*.gguf")}
    assert files == {"m-Q4_K_M.gguf", "m-Q8_0.gguf"}
    report = json.loads((tmp_path / "out/m-Q4_K_M_run.json").read_text())["metrics"]
    assert report["types"]["Q4_K"] > 0


def test_llama_quantizes_failure_is_told(words, tmp_path, monkeypatch, without_library):
    tool = fake_program(tmp_path / "bin" / "llama-quantize", "print('no space'); sys.exit(3)")
    monkeypatch.setenv("PATH", str(tool.parent))
    refused(4, "no space", "convert_to_gguf", *words, "--quantization", "Q4_K_M")
    assert not list((tmp_path / "out").rglob("*.gguf"))


def test_without_any_encoder_the_three_ways_are_named(words, monkeypatch, without_library):
    monkeypatch.setenv("PATH", "")
    error = refused(4, "K-quants", "convert_to_gguf", *words, "--quantization", "Q6_K")
    for way in ("xllamacpp", "gguf.ggml_library", "llama-quantize"):
        assert way in " ".join(error)


def test_a_library_named_in_the_settings(llama, tmp_path):
    named = Encoding(find_encoder(shared_object()))
    write_gguf(llama, tmp_path / "named.gguf", "Q4_K_M", encoding=named, name="m")
    write_gguf(llama, tmp_path / "found.gguf", "Q4_K_M", name="m")
    assert (tmp_path / "named.gguf").read_bytes() == (tmp_path / "found.gguf").read_bytes()
    with pytest.raises(ResourceError, match="not ggml's library"):
        find_encoder(llama / "config.json")


@pytest.fixture
def unknown(tmp_path):
    """A model of an architecture that SlimTune does not know."""
    folder = write_tiny_llama(tmp_path / "unknown", hidden=64)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gemma9"}))
    return folder


def test_another_architecture_is_told_what_would_help(unknown, words, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    error = refused(3, "gemma9", "convert_to_gguf", *words, "--model-path", unknown)
    assert "LLAMA_CPP_DIR" in error[2]


def test_another_architecture_is_handed_over(unknown, words, tmp_path, monkeypatch):
    checkout = tmp_path / "llama.cpp"
    kept = f"shutil.copy(sys.argv[-1], {str(tmp_path / 'told.json')!r})"
    lines = f"open(sys.argv[3], 'w').write('f16')\n{kept}"
    fake_program(checkout / "convert_hf_to_gguf.py", lines)
    edit_json(unknown / "generation_config.json", temperature=0.7, do_sample=True)
    fake_program(checkout / "build/bin/llama-quantize", "shutil.copy(*sys.argv[-3:-1])")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(checkout))
    flags = ("--model-path", unknown, "--quantization", "Q4_K_M,F16")
    ran = succeeds("convert_to_gguf", *words, *flags)
    assert "proof: none: SlimTune does not know this architecture" in ran.out
    log = Path(f"{checkout}/convert_hf_to_gguf.py.log").read_text().splitlines()
    assert len(log) == 2 and all(line.startswith(f"{unknown} --outfile") for line in log)
    assert json.loads((tmp_path / "told.json").read_text())["general.sampling.temp"] == 0
    assert (tmp_path / "out/m-Q4_K_M.gguf").read_text() == "f16"
    assert len(list((tmp_path / "out").glob("m-*"))) == 4  # two files, two records
    refused(2, "create_modelfile", "convert_to_gguf", *words, *flags, "--overwrite",
            "--create-modelfile")  # fmt: skip
    shutil.rmtree(checkout)


def test_numpys_encoder_gives_ggmls_bytes(narrow, tmp_path):
    for kind in ("BF16", "Q4_1", "Q5_0", "Q5_1"):
        write_gguf(
            narrow, tmp_path / "numpy.gguf", kind, encoding=Encoding(Encoder(None)), name="m"
        )
        write_gguf(narrow, tmp_path / "ggml.gguf", kind, name="m")
        assert (tmp_path / "numpy.gguf").read_bytes() == (tmp_path / "ggml.gguf").read_bytes()
    assert gguf.GGUFReader(tmp_path / "numpy.gguf").tensors


@pytest.mark.parametrize("encoder", [find_encoder(), Encoder(None)], ids=["ggml", "numpy"])
def test_rounding_bfloat16_to_f16_the_short_way(encoder):
    """All 65,536 bfloat16 numbers but those that F16 cannot hold."""
    every = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    numbers = every[np.abs(np.nan_to_num(every, nan=np.inf)) <= 65504].reshape(1, -1)
    assert numbers.size > 36_000
    expected = numbers.astype(np.float16).astype(np.float32)
    for found in (encoder.through_f16(numbers, bf16=True), encoder.through_f16(numbers)):
        assert found.tobytes() == expected.tobytes()
