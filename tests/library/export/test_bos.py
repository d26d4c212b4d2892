"""From rows to a proven GGUF and its Modelfile, whoever writes BOS: the tokenizer, or nobody."""

import json
from pathlib import Path

import pytest
from foreign_chat_templates import QWEN2, SMOLLM2
from gguf import GGUFReader
from running import succeeds
from tiny_pipelines import edit_json, write_bpe_llama
from tiny_rows import raw_rows

from slimtune import prompts
from slimtune.config import Training
from slimtune.training.dataset import read_dataset

IM, BEGIN = "<|im_start|>", "<|begin_of_text|>"
# As SmolLM2, as Qwen2 with a bos that it never writes, as its base model, and as Llama-3 does.
MODELS = {
    "smollm2": {"pipeline": "smollm", "bos": IM, "template": SMOLLM2},
    "qwen2": {"pipeline": "qwen2", "bos": "<|endoftext|>", "template": QWEN2},
    "qwen2_base": {"pipeline": "qwen2", "template": QWEN2},
    "llama3": {"pipeline": "llama-bpe", "bos": BEGIN, "puts_bos": True},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> Path:
    folder = write_bpe_llama(tmp_path_factory.mktemp(request.param), **MODELS[request.param])
    if request.param == "qwen2_base":  # EOS ends a text there, and its template a turn
        edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
        edit_json(folder / "config.json", eos_token_id=0)
        edit_json(folder / "generation_config.json", eos_token_id=0)
    return folder


@pytest.mark.parametrize("name", ["auto", *prompts.template_names()])
def test_rows_are_learned_under_every_template(name, model, tmp_path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, raw_rows(2))), encoding="utf-8")
    found = read_dataset(str(model), name, Training(train_data=rows, max_length=400))
    first = found.tokenizer.convert_ids_to_tokens(found.train[0].input_ids)[:2]
    assert first[0] != first[1]
    assert (first[0] == BEGIN) == prompts.puts_bos(found.tokenizer)


@pytest.mark.parametrize("name", ["auto", "llama2"])
def test_the_file_is_proven_and_says_who_writes_bos(name, model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--model-path", model, "--output-dir", "out", "--model-name", "m", "--verify", "quick")
    words += ("--quantization", "F16", "--create-modelfile", "--prompt-template", name)
    assert "exit" not in succeeds("convert_to_gguf", *words, "--dry-run").out
    assert "hard texts" in succeeds("convert_to_gguf", *words).out
    fields = GGUFReader(tmp_path / "out/m-F16.gguf").fields
    puts = fields["tokenizer.ggml.add_bos_token"].contents()
    assert puts == ("llama3" in model.name)
    assert not fields["tokenizer.ggml.add_eos_token"].contents()
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert IM * 2 not in text


def test_a_base_that_wrote_no_template_gets_that_of_the_export(tmp_path, monkeypatch) -> None:
    """The file itself holds it: llama-server renders what the Modelfile would."""
    monkeypatch.chdir(tmp_path)
    folder = write_bpe_llama(tmp_path / "model", bos=IM)
    succeeds("convert_to_gguf", "--model-path", folder, "--output-dir", "out", "--verify", "off")
    (file,) = (tmp_path / "out").glob("*.gguf")
    written = GGUFReader(file).fields["tokenizer.chat_template"].contents()
    assert written == prompts.spelled("chatml", puts_bos=False)
