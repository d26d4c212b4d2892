"""What is written for who serves a model says what was measured, and nothing of the base's."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from tiny_folders import write_tiny_llama
from tiny_pipelines import edit_json
from transformers import AutoModelForCausalLM, GenerationConfig

from slimtune.config import Config, GenerationSection
from slimtune.errors import InputError, SettingsError
from slimtune.export.gguf_writer import write_file
from slimtune.export.preflight import preflight
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models.loading import load_model
from slimtune.models.served_decoding import (
    own_decoding,
    own_decoding_of_gguf,
    with_decoding_of,
    write_generation_config,
)

QWEN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
QWEN |= {"repetition_penalty": 1.05, "eos_token_id": [2, 3], "transformers_version": "4.37.0"}
DRAWN = GenerationSection(temperature=0.7, top_k=20, top_p=0.8, repeat_penalty=1.05)


@pytest.fixture
def base(tmp_path) -> Path:
    """A tiny model whose author wants it sampled as Qwen2.5's does."""
    folder = write_tiny_llama(tmp_path / "base", hidden=64)
    (folder / "generation_config.json").write_text(json.dumps(QWEN))
    return folder


def written(folder: Path) -> dict:
    return json.loads((folder / "generation_config.json").read_text("utf-8"))


def settings(**generation: object) -> Config:
    return Config(generation=GenerationSection(**generation))


def test_greedy_leaves_nothing_of_the_bases_sampling(base) -> None:
    write_generation_config(base, GenerationSection())
    ids = {"eos_token_id": [2, 3], "transformers_version": "4.37.0"}
    assert written(base) == ids | {"do_sample": False}


def test_greedy_can_be_loaded_changed_and_saved_again(base, tmp_path) -> None:
    """With a temperature of 0 beside do_sample false transformers refuses to."""
    write_generation_config(base, GenerationSection(max_new_tokens=5))
    model = AutoModelForCausalLM.from_pretrained(base)
    said = model.generate(torch.tensor([[1, 5, 9]]), pad_token_id=0)
    assert said.equal(model.generate(torch.tensor([[1, 5, 9]]), pad_token_id=0, do_sample=False))
    assert said.shape[1] <= 8
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path / "again")


def test_of_two_lengths_the_one_that_was_asked_for_is_written(base) -> None:
    edit_json(base / "generation_config.json", max_length=4096)
    write_generation_config(base, GenerationSection())
    assert written(base)["max_length"] == 4096
    write_generation_config(base, GenerationSection(max_new_tokens=7))
    assert written(base)["max_new_tokens"] == 7 and "max_length" not in written(base)


def test_what_is_drawn_is_said_in_transformers_names(base) -> None:
    write_generation_config(base, DRAWN)
    assert written(base) == QWEN | {"min_p": 0.0}
    GenerationConfig.from_pretrained(base).validate(strict=True)


def test_a_folder_without_one_gets_the_ids_of_its_config(base) -> None:
    (base / "generation_config.json").unlink()
    write_generation_config(base, GenerationSection(repeat_penalty=1.2))
    config = json.loads((base / "config.json").read_text())
    found = written(base)
    assert found.pop("eos_token_id") == config["eos_token_id"]
    assert found.pop("bos_token_id") == config["bos_token_id"]
    assert (found["do_sample"], found["repetition_penalty"]) == (False, 1.2)
    assert "temperature" not in found


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (QWEN, "temperature 0.7, top_k 20, top_p 0.8, repeat_penalty 1.05"),
        ({"do_sample": True}, "temperature 1, top_k 50"),
        ({"do_sample": True, "temperature": None, "top_k": 0}, "temperature 1"),
        ({"temperature": 0.6, "top_p": 0.9}, "temperature 0.6, top_k 50, top_p 0.9"),
        ({"do_sample": False, "temperature": 0.9}, "greedy"),
        ({"do_sample": True, "temperature": 0.0}, "greedy"),
        ({"repetition_penalty": 1.1}, "greedy, repeat_penalty 1.1"),
        ({}, "greedy"),
    ],
)
def test_a_bases_own_decoding_as_transformers_reads_it(base, told, words) -> None:
    (base / "generation_config.json").write_text(json.dumps(told))
    assert own_decoding(base).words == words


def test_it_is_said_and_not_taken_over(base, caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert with_decoding_of(settings(), base) == settings()
        with_decoding_of(settings(), base)
    (line,) = [line for line in caplog.messages if "asks for" in line]  # once
    assert "temperature 0.7, top_k 20, top_p 0.8, repeat_penalty 1.05" in line
    assert "greedy" in line and "base takes it over" in line


@pytest.mark.parametrize("own", [{}, {"do_sample": False}, QWEN])
def test_nothing_is_said_where_both_are_the_same(base, own, caplog) -> None:
    (base / "generation_config.json").write_text(json.dumps(own))
    same = DRAWN if own == QWEN else GenerationSection()
    with caplog.at_level(logging.INFO):
        with_decoding_of(Config(generation=same), base)
    assert not caplog.messages


def test_generation_base_takes_it_over_and_keeps_length_and_seed(base) -> None:
    asked = settings(source="base", temperature=0.1, max_new_tokens=9, seed=5)
    found = with_decoding_of(asked, base).generation
    assert found.words == DRAWN.words and (found.max_new_tokens, found.seed) == (9, 5)
    assert with_decoding_of(settings(), None) == settings()
    with pytest.raises(SettingsError, match="no base model here"):
        with_decoding_of(asked, None)


def test_values_that_nobody_can_follow_are_named(base) -> None:
    edit_json(base / "generation_config.json", temperature=-1.0)
    with pytest.raises(InputError, match=r"generation_config.json: its temperature is '-1.0'"):
        with_decoding_of(settings(source="base"), base)


def test_a_loaded_model_has_its_ids_and_no_sampling(base) -> None:
    own = load_model(base).generation_config
    assert own.eos_token_id == [2, 3]
    assert own.temperature is None and own.repetition_penalty is None


def test_a_gguf_of_others_says_it_too(tmp_path) -> None:
    told = {"general.sampling.temp": 0.699999988, "general.sampling.top_k": 20}
    assert own_decoding_of_gguf(tmp_path, told).words == "temperature 0.7, top_k 20"
    assert own_decoding_of_gguf(tmp_path, {"general.sampling.temp": 0.0}).words == "greedy"
    assert own_decoding_of_gguf(tmp_path, {"general.name": "x"}) is None
    with pytest.raises(InputError, match="top_k"):
        own_decoding_of_gguf(tmp_path, {"general.sampling.top_k": "many"})


def gguf_of(base: Path, file: Path, generation: GenerationSection) -> dict[str, object]:
    """What the file says of sampling."""
    write_file({file: replace(preflight(base, "F16"), generation=generation)}, threads=1)
    fields = gguf.GGUFReader(file).fields
    return {
        key.removeprefix("general.sampling."): field.contents()
        for key, field in fields.items()
        if key.startswith("general.sampling.")
    }


GREEDY = {"temp": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty_repeat": 1.0}


def test_a_gguf_is_greedy_whatever_its_folder_asks_for(base, tmp_path) -> None:
    assert gguf_of(base, tmp_path / "m.gguf", GenerationSection()) == GREEDY
    drawn = gguf_of(base, tmp_path / "d.gguf", DRAWN)
    wanted = {"temp": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0, "penalty_repeat": 1.05}
    assert drawn == pytest.approx(wanted | {"penalty_last_n": 256})


def test_llama_cpps_converter_writes_the_same_where_the_folder_says_the_same(base, tmp_path):
    """It fills the keys from generation_config.json by gguf's own Metadata."""
    theirs = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty_repeat": 1.0}
    (base / "generation_config.json").write_text(json.dumps(theirs))
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    gguf.Metadata.load(None, base, None, 1).set_gguf_meta_model(writer)
    told = {
        key: (one.value, one.type)
        for key, one in writer.kv_data[0].items()
        if key.startswith("general.sampling.")
    }
    gguf_of(base, tmp_path / "ours.gguf", GenerationSection())
    fields = gguf.GGUFReader(tmp_path / "ours.gguf").fields
    ours = {
        key: (field.contents(), field.types[0])
        for key, field in fields.items()
        if key.startswith("general.sampling.")
    }
    assert ours == told and len(ours) == 5


SERVER = """
import json, os, sys, xllamacpp
from urllib.request import Request, urlopen
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 128, 1, False
params.hostnames, params.port = ["127.0.0.1"], 0
server = xllamacpp.Server(params)
answers = []
for asked in json.loads(sys.argv[2]):
    body = json.dumps(asked | {"n_predict": 12, "return_tokens": True}).encode()
    request = Request(f"{server.listening_address}/completion", body)
    request.add_header("Content-Type", "application/json")
    with urlopen(request) as reply:
        answers.append(json.load(reply)["tokens"])
print(json.dumps(answers), flush=True)
os._exit(0)
"""
PENALISED = GenerationSection(repeat_penalty=1.5)


@pytest.mark.parametrize(
    "generation", [GenerationSection(), PENALISED, DRAWN], ids=["greedy", "penalty", "drawn"]
)
def test_llama_cpps_server_chooses_by_them_without_being_told(base, tmp_path, generation) -> None:
    """The prompts are longer than the 64 tokens that its penalty looks back on by itself.

    A seed is told, for no file can hold one: with ours each draw is ours.
    """
    gguf_of(base, tmp_path / "m.gguf", generation)
    decoding = Decoding.of(generation).within(12)
    prompts = [[1, *range(start, start + 70)] for start in (5, 90, 180, 270)]
    rows = enumerate(prompts)
    asked = [{"prompt": one, "seed": decoding.for_row(row).seed} for row, one in rows]
    command = [sys.executable, "-c", SERVER, tmp_path / "m.gguf", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    theirs = json.loads(done.stdout.splitlines()[-1])
    with LlamaCpp(tmp_path / "m.gguf", context=128, threads=1) as model:
        ours = [answer.ids for answer in model.generate(prompts, decoding)]
        assert decoding.plain or ours != [a.ids for a in model.generate(prompts, Decoding(12))]
    assert [one[: len(mine)] for one, mine in zip(theirs, ours, strict=True)] == ours
