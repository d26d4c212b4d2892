"""How much of the proof memory allows, what it says, and which rows it takes."""

import json
from functools import partial

import gguf
import pytest
from running import files_under, refused, succeeds
from tiny_folders import write_tiny_llama

from slimtune import prompts
from slimtune.artifacts import sha256
from slimtune.errors import QualityError
from slimtune.export import convert, gguf_writer, preflight
from slimtune.export.proof import proving
from slimtune.export.proof.reference import ReferenceAnswer
from slimtune.export.proof.verify import _require_stops
from slimtune.export.quant_types import EXACT, QUANTIZATIONS, TOLERANCES
from slimtune.inference.answers import Generation, TokenLosses


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("model"), hidden=64, initializer_range=0.3)


def words(model, tmp_path) -> list[object]:
    """A config of its own: no rows of the repository's data/ take part."""
    config = tmp_path / "config.yaml"
    config.write_text("gguf: {model_name: m, quantization: F16, output_dir: .}\n")
    return ["--config", config, "--model-path", model]


def proved(model, tmp_path, *flags: object) -> tuple[dict, str]:
    """What the record says of the proof, and what the script says at its end."""
    ran = succeeds("convert_to_gguf", *words(model, tmp_path), "--overwrite", *flags)
    run = json.loads((tmp_path / "m-F16_run.json").read_text())
    return run["metrics"].get("proof", {}), ran.out


@pytest.fixture
def free(monkeypatch):
    """Sets the memory that is free, where the model needs 400 bytes, 200 in bfloat16."""
    monkeypatch.setattr(
        preflight, "_reference_memory", lambda folder: {"float32": 400, "bfloat16": 200}
    )
    return lambda size: monkeypatch.setattr(preflight.memory, "available_memory", lambda: size)


def test_bfloat16_is_the_reference_where_float32_does_not_fit(model, tmp_path, free, caplog):
    free(300)
    caplog.set_level("INFO")
    ran = succeeds("convert_to_gguf", *words(model, tmp_path), "--dry-run")
    assert "memory: about 0.1 GB; 200 B for the proof against the model in bfloat16" in ran.out
    proof, _ = proved(model, tmp_path)
    assert proof["rows"] == proof["prompts"] == 5 and proof["nll_reference"] > 0
    assert "proof against the model in bfloat16" in caplog.text


def test_ids_and_end_token_alone_where_nothing_fits(model, tmp_path, free):
    free(100)
    proof, said = proved(model, tmp_path)
    assert (proof["prompts"], proof["rows"], proof["nll_gguf"]) == (5, 0, None)
    assert "no more than that and the end token, for lack of memory" in said


def test_quick_full_and_off_take_so_many_rows(model, tmp_path, monkeypatch):
    short = partial(proving.build_reference, max_new_tokens=4)
    monkeypatch.setattr(proving, "build_reference", short)
    rows = [{"instruction": f"cat {n}?", "input": "", "output": "mat"} for n in range(70)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ("--test-data", tmp_path / "rows.json", "--verify")
    assert proved(model, tmp_path, *flags, "quick")[0]["rows"] == 8
    assert proved(model, tmp_path, *flags, "full")[0]["rows"] == 64
    assert proved(model, tmp_path, *flags, "off")[0] == {}


def test_of_several_files_those_that_pass_get_their_names(model, tmp_path, monkeypatch):
    """Zeros in one of three: the script fails, the other two are finished."""
    write = gguf_writer.write_file

    def write_badly(plans, **options):
        reports = write(plans, **options)
        bad = next(file for file in plans if file.name == "m-Q4_0.gguf")
        with bad.open("r+b") as file:
            file.seek(-20_000, 2)
            file.write(bytes(20_000))
        return reports

    monkeypatch.setattr(convert, "write_file", write_badly)
    flags = ("--output-dir", tmp_path / "out", "--quantization", "F16,Q4_0,Q8_0")
    error = refused(5, "m-Q4_0", "convert_to_gguf", *words(model, tmp_path), *flags)
    assert "kept as" in error[2]
    expected = {"m-F16.gguf", "m-F16_run.json", "m-Q8_0.gguf", "m-Q8_0_run.json"}
    assert set(files_under(tmp_path / "out")) == expected | {"m-Q4_0.failed-proof.gguf"}
    for name in ("m-F16", "m-Q8_0"):
        run = json.loads((tmp_path / f"out/{name}_run.json").read_text())
        assert run["files"][f"{name}.gguf"]["sha256"] == sha256(tmp_path / f"out/{name}.gguf")


def test_a_model_without_a_template_gets_the_one_of_the_settings(tmp_path):
    bare = write_tiny_llama(tmp_path / "bare", hidden=64, template=None)
    proved(bare, tmp_path, "--prompt-template", "alpaca", "--verify", "off")
    fields = gguf.GGUFReader(tmp_path / "m-F16.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == prompts.template("alpaca")
    proved(bare, tmp_path, "--through-f16", "true", "--verify", "off")
    assert "tokenizer.chat_template" not in gguf.GGUFReader(tmp_path / "m-F16.gguf").fields


def test_every_type_has_a_tolerance_and_coarser_ones_a_larger():
    assert TOLERANCES.keys() == QUANTIZATIONS.keys()
    assert list(TOLERANCES.values()) == sorted(TOLERANCES.values())
    assert set(EXACT) < TOLERANCES.keys()


@pytest.mark.parametrize(
    ("ends", "likely", "fails"),
    [
        ((True, True), 9.0, False),
        ((True, False), 9.0, False),
        ((False, False), 9.0, True),
        ((False, False), 0.9, False),  # it went on longer; where the model ends, so would it
    ],
)
def test_at_least_half_of_the_answers_that_end_must_end(ends, likely, fails, tmp_path):
    said = [
        ReferenceAnswer(Generation("x", [3], stopped), [3, 2], TokenLosses([0.1, 0.2], [True] * 2))
        for stopped in (True, True, False)
    ]
    answers = [Generation("x", [3], stopped) for stopped in (*ends, False)]
    losses = [TokenLosses([0.1, likely], [True] * 2)] * 3
    if not fails:
        return _require_stops(tmp_path, said, answers, losses)
    with pytest.raises(QualityError, match="2 of 2 answers do not end"):
        _require_stops(tmp_path, said, answers, losses)
