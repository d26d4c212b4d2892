"""convert_to_gguf.py: a file that answers as its model does, or none; a Modelfile that fits."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader
from running import another_run_writing, files_under, imported_by, leaves_nothing, refused, succeeds
from tiny_folders import write_tiny_llama
from tiny_pipelines import edit_json

from slimtune import prompts
from slimtune.export import convert
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers

LARGE_PACKAGES = {"torch", "transformers", "huggingface_hub"}
QUESTIONS = {
    "What did the cat do on day 99?": "The cat sat on the mat.",
    "第99天天气怎么样？": "今天天气很好。",
}


def types_of(file: Path) -> set[str]:
    return {tensor.tensor_type.name for tensor in GGUFReader(file).tensors}


def test_the_file_answers(gguf, merged) -> None:
    tokenizer = tokenizers.load_tokenizer(merged)
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    template = prompts.template("llama2")
    ids = [prompts.encode_prompt(tokenizer, messages, template) for messages in asked]
    with LlamaCpp(gguf, context=128, slots=2) as model:
        answers = [answer.text.strip() for answer in model.generate(ids, Decoding(12))]
    assert answers == list(QUESTIONS.values())


def test_what_is_written_beside_the_file(gguf, merged) -> None:
    run = json.loads((gguf.parent / "tiny-F16_run.json").read_text())
    assert list(run["files"]) == [gguf.name] and run["files"][gguf.name]["bytes"] > 100_000
    before = json.loads((merged / "run.json").read_text())
    assert [one["run_id"] for one in run["inputs"]] == [before["run_id"]]
    proof = run["metrics"]["proof"]
    assert proof["prompts"] == proof["rows"] == 8 and proof["agreement"] == 1
    assert proof["stopped"] == proof["stopping"] == 8
    assert proof["nll_gguf"] == pytest.approx(proof["nll_reference"], abs=0.005)


def test_flags_only_with_a_modelfile(merged, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("convert_to_gguf", "--model-path", merged, "--output-dir", "gguf")
    words += ("--quantization", "Q8_0", "--create-modelfile", "--model-name", "llama2-finetuned")
    ran = succeeds(*words)
    assert "wrote  gguf/llama2-finetuned-Q8_0.gguf\nwrote  Modelfile\n" in ran.out
    assert "token ids equal on" in ran.out
    assert ran.out.endswith("next:  ollama create llama2-finetuned -f Modelfile\n")
    modelfile = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert 'FROM "./gguf/llama2-finetuned-Q8_0.gguf"\n' in modelfile
    assert "[INST]" in modelfile.split("TEMPLATE ")[1]
    before = files_under(tmp_path)
    refused(2, "--overwrite", *words)
    assert files_under(tmp_path) == before
    succeeds(*words, "--system-prompt", "Be brief.", "--overwrite")
    assert "Be brief." in (tmp_path / "Modelfile").read_text()


def test_a_modelfile_as_slimtune_wrote_it_is_replaced_and_yours_is_not(
    settings, merged, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("convert_to_gguf", *settings, "--model-path", merged, "--verify", "off")
    words += ("--create-modelfile",)
    file = Path("Modelfile")
    for folder, name in (("out", "first"), ("out", "second"), ("elsewhere", "third")):
        succeeds(*words, "--output-dir", folder, "--model-name", name)
        assert f'FROM "./{folder}/{name}-F16.gguf"\n' in file.read_text(encoding="utf-8")
    ours = file.read_text(encoding="utf-8")
    for yours in (ours + "PARAMETER seed 1\n", "FROM mine\n", "", 'FROM "./../../x.gguf"\n'):
        file.write_text(yours, encoding="utf-8")
        refused(2, "Modelfile: exists already", *words, "--model-name", "fourth")
        assert file.read_text(encoding="utf-8") == yours
    file.write_text(ours, encoding="utf-8", newline="\n")
    succeeds(*words, "--model-name", "fourth", "--dry-run")
    (tmp_path / "elsewhere/third-F16_run.json").unlink()
    refused(2, "Modelfile: exists already", *words, "--model-name", "fourth")


QWEN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}


def test_a_bases_own_decoding_is_said_and_taken_over_when_asked(
    settings, merged, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(merged, tmp_path / "base")
    (folder / "run.json").unlink()  # else its seals say that somebody changed it
    edit_json(folder / "generation_config.json", **QWEN)
    words = ("--model-path", folder, "--output-dir", "out", "--verify", "off", "--overwrite")
    for flags, temperature in (((), 0.0), (("--generation", "base"), 0.7)):
        with caplog.at_level("INFO"):
            succeeds("convert_to_gguf", *settings, *words, "--create-modelfile", *flags)
        fields = GGUFReader(tmp_path / "out/tiny-F16.gguf").fields
        found = fields["general.sampling.temp"].contents()
        assert found == pytest.approx(temperature)
        said = (tmp_path / "Modelfile").read_text(encoding="utf-8")
        assert f"PARAMETER temperature {temperature:g}\n" in said
        assert "PARAMETER repeat_penalty 1\n" in said and "PARAMETER seed" not in said
    (line,) = [line for line in caplog.messages if "asks for temperature 0.7, top_k 20" in line]
    assert "--generation base takes it over" in line
    assert any("generation: base: " in line for line in caplog.messages)


@pytest.mark.parametrize("quantization", ["F32", "BF16", "Q4_0", "Q4_K_M", "Q5_K_M"])
def test_flags_win_over_the_config(quantization, settings, gguf, tmp_path) -> None:
    """Hidden 64: K-quants fall back to types with rows of 32, and the script says so."""
    flags = ("--quantization", quantization, "--output-dir", tmp_path)
    ran = succeeds("convert_to_gguf", *settings, *flags)
    file = tmp_path / f"tiny-{quantization}.gguf"
    assert ("fallbacks: none" in ran.out) == (quantization in ("F32", "BF16"))
    expected = {"F32": "F32", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_K_M": "Q5_0", "Q5_K_M": "Q5_1"}
    assert expected[quantization] in types_of(file)
    if quantization == "Q4_K_M":
        assert "2 × blk.*.attn_k.weight (Q5_0)" in ran.out
    larger = quantization == "F32"
    assert (file.stat().st_size > gguf.stat().st_size) == larger or quantization == "BF16"


def test_several_types_from_one_read_each_with_its_own_record(settings, gguf, tmp_path) -> None:
    flags = ("--quantization", "F16,Q8_0", "--output-dir", tmp_path)
    ran = succeeds("convert_to_gguf", *settings, *flags)
    assert "proof of Q8_0: token ids equal" in ran.out
    for name in ("F16", "Q8_0"):
        run = json.loads((tmp_path / f"tiny-{name}_run.json").read_text())
        assert list(run["files"]) == [f"tiny-{name}.gguf"]
        assert run["metrics"]["proof"]["prompts"] > 0
    assert (tmp_path / "tiny-F16.gguf").read_bytes() == gguf.read_bytes()
    refused(2, "--overwrite", "convert_to_gguf", *settings, *flags, "--quantization", "Q4_0,Q8_0")


def test_merging_on_the_way_gives_the_merged_models_bytes(
    settings, project, adapter, gguf, tmp_path
) -> None:
    """The name of the folder is part of a GGUF, and the same: merged_model."""
    flags = ("--model-path", project / "base", "--lora-model", adapter, "--output-dir", tmp_path)
    ran = succeeds("convert_to_gguf", *settings, *flags)
    assert "token ids equal" in ran.out and "same greedy text for 100%" in ran.out
    assert (tmp_path / "tiny-F16.gguf").read_bytes() == gguf.read_bytes()
    run = json.loads((tmp_path / "tiny-F16_run.json").read_text())
    assert [one["path"] for one in run["inputs"]] == [str(project / "base"), str(adapter)]


def test_importance_measured_on_training_rows(settings, gguf, tmp_path) -> None:
    flags = ("--imatrix", "auto", "--imatrix-rows", 8, "--quantization", "Q4_0,F16")
    ran = succeeds("convert_to_gguf", *settings, *flags, "--output-dir", tmp_path)
    assert "proof of Q4_0: token ids equal" in ran.out
    fields = GGUFReader(tmp_path / "tiny-Q4_0.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == "tiny.imatrix.gguf"
    assert fields["quantize.imatrix.dataset"].contents() == "train_train.jsonl"
    again = ("--imatrix", tmp_path / "tiny.imatrix.gguf", "--quantization", "Q4_0")
    succeeds("convert_to_gguf", *settings, *again, "--output-dir", tmp_path / "again")
    one, two = (folder / "tiny-Q4_0.gguf" for folder in (tmp_path, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()
    flags = ("--imatrix", "auto", "--train-data", tmp_path / "none.jsonl", "--verify", "off")
    refused(
        2, "imatrix is auto", "convert_to_gguf", *settings, *flags, "--output-dir", tmp_path / "b"
    )


TARGETS = {
    ("--target-size", "130kB"): "tiny-130kB",
    ("--target-bits", "6"): "tiny-6bpw",
    ("--max-loss", "0.05"): "tiny-0.05nats",
}


@pytest.mark.parametrize("flags", TARGETS, ids=TARGETS.values())
def test_a_file_of_a_given_size_tells_its_loss_beforehand(
    flags, settings, merged, tmp_path, monkeypatch
) -> None:
    """The chat partner knows nothing of it: an ordinary GGUF, proven, with a Modelfile."""
    monkeypatch.chdir(tmp_path)
    more = ("--imatrix-rows", 16, "--output-dir", "out", "--create-modelfile")
    ran = succeeds("convert_to_gguf", *settings, *flags, *more)
    name = TARGETS[flags]
    assert f"wrote  out/{name}.gguf" in ran.out and "token ids equal" in ran.out
    assert f'FROM "./out/{name}.gguf"' in Path("Modelfile").read_text(encoding="utf-8")
    metrics = json.loads((tmp_path / f"out/{name}_run.json").read_text())["metrics"]
    assert f"expected loss: {metrics['expected_loss']:.4f} nats a token" in ran.out
    told = {tensor: entry["type"] for tensor, entry in metrics["tensors"].items()}
    found = {one.name: one.tensor_type.name for one in GGUFReader(f"out/{name}.gguf").tensors}
    assert told.items() <= found.items() and set(found.values()) - {"F32"} == set(told.values())
    losses = [entry["loss"] for entry in metrics["tensors"].values()]
    assert sum(losses) == pytest.approx(metrics["expected_loss"])
    if flags[0] == "--target-size":
        assert 126_000 < (tmp_path / f"out/{name}.gguf").stat().st_size <= 130_000
    if flags[0] == "--max-loss":
        assert metrics["expected_loss"] <= 0.05


def test_a_dry_run_answers_what_each_size_would_lose(
    settings, merged, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--imatrix", "auto", "--imatrix-rows", 8, "--output-dir", "out", "--dry-run")
    ran = succeeds("convert_to_gguf", *settings, *flags, "--target-bits", "6")
    rows = [line.split() for line in ran.out.splitlines()]
    lines = {row[0]: row for row in rows if row and row[0] in ("F16", "Q8_0", "Q4_0", "6bpw")}
    assert lines.keys() == {"F16", "Q8_0", "Q4_0", "6bpw"}
    assert float(lines["Q4_0"][5]) <= float(lines["Q4_0"][4]) and "●" in lines["Q4_0"]
    assert "would write  out/tiny-6bpw.gguf" in ran.out and "expected loss: " in ran.out
    assert leaves_nothing(tmp_path)


def test_what_was_measured_once_serves_the_next_size(settings, merged, tmp_path) -> None:
    flags = ("--target-size", "130kB", "--imatrix-rows", 16, "--output-dir", tmp_path)
    succeeds("convert_to_gguf", *settings, *flags, "--verify", "off")
    flags = ("--target-size", "130kB", "--imatrix", tmp_path / "tiny.imatrix.gguf")
    flags += ("--output-dir", tmp_path / "again", "--verify", "off")
    assert not imported_by("convert_to_gguf", *settings, *flags) & LARGE_PACKAGES
    one, two = (folder / "tiny-130kB.gguf" for folder in (tmp_path, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()


def test_merging_on_the_way_to_a_given_size(settings, project, adapter, merged, tmp_path) -> None:
    """The merged model is measured, though no folder holds it."""
    flags = ("--target-size", "130kB", "--imatrix-rows", 16, "--verify", "off")
    succeeds("convert_to_gguf", *settings, *flags, "--output-dir", tmp_path / "a")
    flags += ("--model-path", project / "base", "--lora-model", adapter)
    succeeds("convert_to_gguf", *settings, *flags, "--output-dir", tmp_path / "b")
    one, two = (tmp_path / folder / "tiny-130kB.gguf" for folder in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target-size", "10kB"], "cannot be so small"),
        (["--target-bits", "2"], "cannot be so small"),
        (["--target-size", "1.2 apples"], "1.2GB, 900MB or 1.1GiB"),
        (["--target-size", "1MB", "--max-loss", "0.1"], "target_size and max_loss both say"),
        (["--target-bits", "5", "--train-data", "none.jsonl"], "none.jsonl is not there"),
        (["--target-bits", "5", "--lora-as", "adapter"], "is for a whole model"),
    ],
)
def test_a_size_that_cannot_be_is_refused_before_the_work(
    flags, words, dry, settings, merged, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = refused(2, "", "convert_to_gguf", *settings, *flags, *dry, "--output-dir", "out")
    assert words in " ".join(ran)
    assert leaves_nothing(tmp_path)


def test_a_model_that_is_quantised_already_gets_no_size(settings, merged, tmp_path) -> None:
    """To round again what was rounded once ruins a model, whatever the types."""
    model = shutil.copytree(merged, tmp_path / "quantised")
    (model / "run.json").unlink()
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (model / "config.json").write_text(json.dumps(config))
    flags = ("--model-path", model, "--target-bits", "6", "--output-dir", tmp_path / "out")
    refused(3, "quantised", "convert_to_gguf", *settings, *flags)
    assert leaves_nothing(tmp_path / "out")


def test_a_conversion_needs_no_large_package(settings, merged, tmp_path) -> None:
    """torch alone weighs more than the memory a conversion may take, the Hub's client 11 MB."""
    flags = ("--verify", "off", "--quantization", "Q8_0", "--output-dir", tmp_path)
    assert not imported_by("convert_to_gguf", *settings, *flags) & LARGE_PACKAGES


def test_k_quants_where_the_rows_allow_them(settings, rows, tmp_path) -> None:
    wide = write_tiny_llama(tmp_path / "wide", hidden=256)
    flags = ("--model-path", wide, "--quantization", "Q4_K_M", "--output-dir", tmp_path / "out")
    ran = succeeds("convert_to_gguf", *settings, *flags)
    assert "fallbacks: none" in ran.out
    assert {"Q4_K", "Q6_K"} <= types_of(tmp_path / "out/tiny-Q4_K_M.gguf")


def test_the_proof_can_be_skipped_and_says_so(settings, merged, tmp_path) -> None:
    flags = ("--verify", "off", "--output-dir", tmp_path)
    assert "proof: off: nothing was compared" in succeeds("convert_to_gguf", *settings, *flags).out


def test_a_file_that_fails_its_proof_gets_a_name_that_says_so(
    settings, merged, tmp_path, monkeypatch
) -> None:
    write = convert.write_file

    def write_badly(plans, **kwargs):
        reports = write(plans, **kwargs)
        for output in plans:
            with output.open("r+b") as file:
                file.seek(-20_000, 2)
                file.write(bytes(20_000))
        return reports

    monkeypatch.setattr(convert, "write_file", write_badly)
    monkeypatch.chdir(tmp_path)
    flags = ("--output-dir", "out", "--create-modelfile")
    error = refused(5, "", "convert_to_gguf", *settings, *flags)
    assert "kept as out/tiny-F16.failed-proof.gguf" in error[2] and ".partial" not in "".join(error)
    assert list(files_under(tmp_path)) == ["out/tiny-F16.failed-proof.gguf"]


def test_a_dry_run_tells_the_size_and_writes_nothing(settings, gguf, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--output-dir", "out", "--create-modelfile", "--dry-run")
    ran = succeeds("convert_to_gguf", *settings, *flags)
    assert "would write  out/tiny-F16.gguf" in ran.out
    told = float(ran.out.split("on disk: ")[1].split(" kB")[0])
    assert told == pytest.approx(gguf.stat().st_size / 1000, rel=0.02)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        (3, ["--model-path", "./nowhere"], "nowhere: not there"),
        (3, ["--model-path", "empty"], "no weights"),
        (3, ["--test-data", "nowhere.jsonl"], "nowhere.jsonl"),
        (2, ["--quantization", "Q3_K"], "Q3_K is no gguf.quantization"),
        (2, ["--model-name", "a//b"], "model_name"),
        (2, ["--model-name", "../b"], "model_name"),
        (2, ["--model-name", "a/b:c:d"], "model_name"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_bad_input_is_refused(
    code, flags, words, dry, settings, merged, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    flags = (*settings, *flags, *dry, "--output-dir", "out", "--create-modelfile")
    refused(code, words, "convert_to_gguf", *flags)
    assert leaves_nothing(tmp_path)


def test_an_adapter_is_told_how_to_become_a_model(settings, adapter, tmp_path) -> None:
    flags = ("--model-path", adapter, "--output-dir", tmp_path / "out")
    refused(3, "--merge", "convert_to_gguf", *settings, *flags)
    assert leaves_nothing(tmp_path)


def test_a_model_whose_stage_did_not_finish(settings, merged, tmp_path) -> None:
    shutil.copytree(merged, tmp_path / "merged_model.partial")
    flags = ("--model-path", tmp_path / "merged_model", "--output-dir", tmp_path / "out")
    error = refused(3, "did not finish", "convert_to_gguf", *settings, *flags)
    assert "evaluate_model.py --merge" in error[2]
    assert leaves_nothing(tmp_path / "out")


def test_a_file_that_another_run_is_writing(settings, merged, tmp_path) -> None:
    with another_run_writing(tmp_path / "tiny-F16_run.json"):
        refused(6, "another run", "convert_to_gguf", *settings, "--output-dir", tmp_path)
    assert leaves_nothing(tmp_path)
