"""What llama.cpp's own server answers is what evaluation measured, or the file gets no name.

One thing at a time is broken: the sampling that the file tells a server, its template, its rows of
q, the scale of an adapter, a server that is late.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign_chat_templates import ZEPHYR
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from running import refused, succeeds
from tiny_ggufs import changed
from transformers import AutoModelForCausalLM

from slimtune import prompts
from slimtune.config import ModelSection
from slimtune.errors import QualityError
from slimtune.export import adapter_export, gguf_writer
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.proof import serving
from slimtune.export.proof.reference import Reference, build_reference
from slimtune.export.proof.serving import (
    Difference,
    OwnAnswers,
    compare,
    require_served,
)
from slimtune.inference.answers import Generation
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import open_engine
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.llama_server import LlamaServer
from slimtune.inference.questions import Candidate
from slimtune.inference.server_client import Reply

NAMES = ("temp", "top_k", "top_p", "min_p")
TEMP, TOP_K, TOP_P, MIN_P = (f"general__sampling__{name}" for name in NAMES)
TEMPLATES = {name: prompts.template(name) for name in ("llama2", "alpaca", "chatml")}
TEMPLATES["its own"] = ZEPHYR
NEW = Decoding(max_new_tokens=8)
SYSTEM = {"role": "system", "content": 'Answer "briefly".\n简短。'}
TURNS = [
    {"role": "user", "content": "The cat sat?"},
    {"role": "assistant", "content": "On the mat."},
    {"role": "user", "content": "今天天气怎么样？"},
]


def conversations(count: int) -> list[list[dict[str, str]]]:
    """English, Chinese, a system prompt and two turns, one after another."""
    rows = []
    for number in range(count):
        alone = {"role": "user", "content": f"And the dogs, at {number} o'clock?"}
        chinese = {"role": "user", "content": f"第{number}天，我们去公园 “散步” 吗？"}
        kinds = [[alone], [SYSTEM, alone], [chinese], TURNS, [SYSTEM, *TURNS[:2], alone]]
        rows.append(kinds[number % len(kinds)])
    return rows


@pytest.fixture(scope="module")
def folders(taught_llama, tmp_path_factory) -> dict[str, Path]:
    """One model with each of the templates."""
    root = tmp_path_factory.mktemp("served")
    for name, template in TEMPLATES.items():
        shutil.copytree(taught_llama, root / name)
        (root / name / "chat_template.jinja").write_text(template, encoding="utf-8")
    return {name: root / name for name in TEMPLATES}


@pytest.fixture(scope="module")
def files(folders) -> dict[str, Path]:
    """A GGUF of each that tells a server: the likeliest token."""
    return {name: greedy(folder) for name, folder in folders.items()}


def greedy(folder: Path, **entries: object) -> Path:
    write_gguf(folder, folder / "plain.gguf", "F32")
    entries = {"general__sampling__temp": 0.0} | entries
    return changed(folder / "plain.gguf", folder / "served.gguf", **entries)


@pytest.fixture(scope="module")
def vocabulary(files) -> Iterator[LlamaCpp]:
    with LlamaCpp(files["llama2"], slots=0) as vocabulary:
        yield vocabulary


@pytest.mark.parametrize("name", TEMPLATES)
def test_forty_rows_without_a_word_on_sampling_get_evaluations_answers(
    name, folders, files, vocabulary
):
    """The folder's answers in float32, written as llama.cpp writes their ids: where an answer is
    cut in half a character, transformers has U+FFFD for the whole ones before it, too.
    """
    rows, template = conversations(40), TEMPLATES[name]
    candidate = Candidate("model", str(folders[name]))
    engine = open_engine(candidate, ModelSection(device="cpu", dtype="float32"), 512)
    ids = [prompts.encode_prompt(engine.tokenizer, row, template) for row in rows]
    measured = dict(engine.generate(ids, NEW))
    texts = [vocabulary.texts(measured[row].ids)[-1] for row in range(40)]
    written = [replace(measured[row], text=text) for row, text in enumerate(texts)]
    with LlamaServer(files[name], context=512, threads=1) as server:
        answers = [server.chat(row, NEW) for row in rows]
    own = OwnAnswers(files[name], None, ids, written)
    found = compare(own, [row[-1]["content"] for row in rows], answers)
    assert found.first is None and found.equal + found.ties == 40
    assert found.equal > 37 and len({answer.text for answer in answers}) > 10


@pytest.fixture(scope="module")
def reference(folders) -> Reference:
    template = TEMPLATES["llama2"]
    return build_reference(folders["llama2"], conversations(6), template, max_new_tokens=8)


def test_the_reference_of_a_proof_is_asked(files, reference):
    found = require_served(files["llama2"], reference, NEW)
    assert (found.rows, found.first) == (6, None) and found.equal + found.ties == 6
    assert found.words.startswith(f"{found.equal} of 6 answers equal")


def test_a_file_that_has_a_server_sample_is_refused(folders, files, reference):
    file = changed(files["llama2"], files["llama2"].with_name("warm.gguf"), **{TEMP: 0.8})
    with pytest.raises(QualityError, match="its server samples with temperature 0.8") as caught:
        require_served(file, reference, NEW)
    assert "evaluation with 0" in caught.value.what


SERVED = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1}


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("draws", [True, False])
def test_every_setting_that_counts_must_be_the_servers(name, draws):
    """Where the likeliest token is taken, what narrows the choice has no effect."""
    sampling = SERVED if draws else SERVED | {"temperature": 0.0}
    decoding = replace(NEW, **sampling)
    serving._require_sampling(Path("m.gguf"), decoding, sampling)
    matters = draws or name in ("temperature", "repeat_penalty")
    for other in (sampling[name] + 0.1, None):
        with pytest.raises(QualityError) if matters else nullcontext() as caught:
            serving._require_sampling(Path("m.gguf"), decoding, sampling | {name: other})
        assert not matters or f"its server samples with {name} {other}" in caught.value.what


def test_a_decoding_that_draws_is_served_with_the_rows_seed(files, reference, tmp_path):
    warm = {TEMP: 0.7, TOP_K: 5, TOP_P: 1.0, MIN_P: 0.0}
    file = changed(files["llama2"], tmp_path / "warm.gguf", **warm)
    found = require_served(file, reference, replace(NEW, temperature=0.7, top_k=5, seed=3))
    assert found.first is None and found.equal >= 5


def test_another_template_in_the_file_is_found(files, reference, tmp_path):
    other = TEMPLATES["llama2"].replace("[INST] ", "[INST]  ")
    file = changed(files["llama2"], tmp_path / "o.gguf", tokenizer__chat_template=other)
    with pytest.raises(QualityError, match="server answers row 1 otherwise") as caught:
        require_served(file, reference, NEW)
    count = len(reference.rows[0].prompt)
    assert f"prompt tokens: {count} in training, {count + 1} served" in caught.value.why
    assert "expected '" in caught.value.why and "--prompt-template" in caught.value.cure


def test_a_server_that_says_something_else_is_told_with_both_texts(files, reference, monkeypatch):
    chat = LlamaServer.chat

    def otherwise(server: LlamaServer, messages: Sequence, decoding: Decoding) -> Reply:
        return replace(chat(server, messages, decoding), text="The dogs ran.")

    monkeypatch.setattr(LlamaServer, "chat", otherwise)
    with pytest.raises(QualityError, match="server answers row 1 otherwise") as caught:
        require_served(files["llama2"], reference, NEW)
    assert "served 'The dogs ran.'" in caught.value.why and "o'clock?" in caught.value.why


def reply(text: str, prompt_tokens: int | None) -> Reply:
    return Reply(text, None, True, (0, 0.0), prompt_tokens)


def own(texts: list[str], tied: bool = False) -> OwnAnswers:
    """Answers to prompts of three tokens, sure at every step or at none."""
    said = [Generation(text, [], True) for text in texts]
    found = OwnAnswers(Path("m.gguf"), None, [[1, 2, 3]] * len(texts), said)
    object.__setattr__(found, "tied", lambda row, text: tied)
    return found


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("Yes.", " Yes.\n", True),
        ("Yes.", "Yes", False),
        ("今天�", "今天", True),  # half a character, at the last token
        ("a��b", "a�b", True),  # broken bytes, counted otherwise
        ("Yes. [INST] And", "Yes.", True),  # [INST] stops the server, nothing stops us
        ("", "", True),
        ("a\x0fb", "ab", True),  # a terminal would obey it
    ],
)
def test_what_counts_as_the_same_text(ours, theirs, same):
    found = compare(own([ours]), ["?"], [reply(theirs, 3)], ["[INST]"])
    assert (found.equal == 1) == same and (found.first is None) == same


def test_two_tokens_as_likely_are_no_difference():
    replies = [reply("a", 3), reply("x", 3), reply("y", 4)]
    found = compare(own(["a", "b", "c"], tied=True), ["A?", "B?", "C?"], replies)
    assert (found.equal, found.ties) == (1, 1)
    assert found.first == Difference(3, "C?", "c", "y", 3, 4)  # of another prompt: no tie
    assert found.words == "1 of 3 answers equal, 1 otherwise where two tokens are as likely"


def test_a_server_that_counts_no_tokens_is_known_by_its_text():
    found = compare(own(["a", "b"]), ["A?", "B?"], [reply("a", None), reply("x", None)])
    assert found.equal == 1 and found.first == Difference(2, "B?", "b", "x", 3, None)


def test_the_first_that_differs_is_told_and_the_others_counted():
    answers = [reply("a", 3), reply("b", 4), reply("x", 3)]
    found = compare(own(["a", "b", "c"]), ["A?", "B?", "C?"], answers)
    assert (found.rows, found.equal, found.ties) == (3, 1, 0)
    assert found.first == Difference(2, "B?", "b", "b", 3, 4)
    assert found.words == "1 of 3 answers equal"


@pytest.mark.parametrize(
    ("text", "one", "many", "tied"),
    [
        ("The cat ran", [1, 1, 0.01, 1], [1, 1, 0.01, 1], True),  # where it leaves, TIE and less
        ("The dog", [1, 1, 0.01, 1], [1, 1, 0.01, 1], False),
        ("The cat sat on", [1, 1, 1, 0.01], [1, 1, 1, 0.01], True),  # where ours ended
        ("The cat", [1, 1, 0.01, 1], [1, 1, 0.01, 1], True),  # where theirs ended
        ("The cat ran", [1, 1, 0.2, 1], [1, 1, 0.2, 1], False),
        ("The cat ran", [1, 1, 0.2, 1], [1.3, 1, 0.2, 1], True),  # so far apart are two ways
        ("The cat ran", [1, 1, 0.4, 1], [1.3, 1, 0.2, 1], True),  # the nearer of the two counts
    ],
)
def test_a_difference_is_weighed_where_it_begins(text, one, many, tied, monkeypatch):
    class Model:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> "Model":
            return self

        def __exit__(self, *_: object) -> None: ...

        def texts(self, ids: list[int]) -> list[str]:
            return ["The", "The cat", "The cat sat"]

        def margins(self, prompt: list[int], ids: list[int], at_once: int) -> list[float]:
            return one if at_once else many

    monkeypatch.setattr(serving, "LlamaCpp", Model)
    said = [Generation("The cat sat", [5, 6, 7], True)]
    assert OwnAnswers(Path("m.gguf"), None, [[1, 2]], said).tied(0, text) == tied


def test_served_is_a_step_of_the_proof(folders, tmp_path, monkeypatch):
    """Through the script: said, recorded, and the file has no name where it fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("gguf: {model_name: m, output_dir: .}\n")
    words = ["--config", "config.yaml", "--model-path", folders["llama2"], "--verify", "served"]
    ran = succeeds("convert_to_gguf", *words, "--quantization", "Q8_0")
    assert "; llama.cpp's server: 5 of 5 answers equal\n" in ran.out
    run = json.loads((tmp_path / "m-Q8_0_run.json").read_text())
    assert run["metrics"]["proof"]["served"] == {"rows": 5, "equal": 5, "ties": 0, "first": None}
    monkeypatch.setattr(LlamaServer, "sampling", lambda server: {"temperature": 0.8})
    error = refused(5, "its server samples", "convert_to_gguf", *words, "--quantization", "F16")
    assert error[0].startswith("error: m-F16.failed-proof.gguf: its server samples")
    assert not (tmp_path / "m-F16.gguf").exists()


def test_rows_of_q_in_another_order_are_found(folders, tmp_path, monkeypatch):
    """What is served is proven after the file: a server agrees with a file that is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gguf_writer, "row_order", lambda *_: None)
    words = ["--model-path", folders["llama2"], "--quantization", "F16", "--output-dir", "."]
    refused(5, "differently", "convert_to_gguf", *words, "--verify", "served")


def test_an_adapter_is_served_on_its_base_and_another_alpha_is_found(
    folders, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folders["llama2"], dtype=torch.float32)
    torch.manual_seed(4)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained("adapter")
    words = ["--model-path", folders["llama2"], "--lora-model", "adapter", "--lora-as", "adapter"]
    words += ["--quantization", "F16", "--output-dir", "out", "--model-name", "m"]
    words += ["--verify", "served"]
    ran = succeeds("convert_to_gguf", *words)
    assert "; llama.cpp's server: 5 of 5 answers equal\n" in ran.out.split("proof on F16: ")[1]
    run = json.loads((tmp_path / "out/m-lora-F16_run.json").read_text())
    assert run["metrics"]["proofs"]["F16"]["served"]["equal"] == 5
    write = adapter_export.write_adapter

    def write_badly(plan: object, output: Path, *words: str) -> object:
        report = write(plan, output, *words)
        reader = GGUFReader(output, "r+")
        reader.fields["adapter.lora.alpha"].parts[-1][0] *= 2
        return report

    monkeypatch.setattr(adapter_export, "write_adapter", write_badly)
    refused(5, "differently", "convert_to_gguf", *words, "--model-name", "other")
