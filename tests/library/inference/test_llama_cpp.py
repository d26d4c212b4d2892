"""llama.cpp in a child process: ids and text as transformers', and each way it can go wrong."""

import math
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folders import write_tiny_llama
from transformers import LlamaForCausalLM

from slimtune.config import Config
from slimtune.errors import InputError, ResourceError
from slimtune.export.gguf_writer import write_gguf
from slimtune.inference import llama_child, llama_library
from slimtune.inference.answers import Candidate, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import open_engine
from slimtune.inference.generation import generate_batch
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers
from slimtune.models.weights import copy_companions

pytestmark = pytest.mark.usefixtures("llama_cpp_as_users_start_it")
TEXTS = ["The cat sat", "今天天气 [INST] x [/INST]", "    return 3.14", "", "a</s> b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), hidden=64, initializer_range=0.3)


@pytest.fixture(scope="module")
def gguf(folder):
    write_gguf(folder, folder / "model.gguf", "F32")
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.load_tokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(gguf):
    with LlamaCpp(gguf, context=64, slots=3, threads=1) as model:
        yield model


def expected_ids(reference, prompt: list[int], new_tokens: int) -> list[int]:
    out = reference.generate(
        torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_the_tokenizers(model, tokenizer, text):
    assert model.tokenize(text) == tokenizer(text).input_ids
    assert model.tokenize(text, add_special=False) == tokenizer(text).input_ids[1:]


def test_many_prompts_side_by_side_equal_transformers_one_by_one(model, reference, tokenizer):
    prompts = [tokenizer(text).input_ids for text in [*TEXTS, "The dogs", "and 12", "Write"]]
    answers = model.generate(prompts, Decoding(12))
    for prompt, answer in zip(prompts, answers, strict=True):
        wanted = expected_ids(reference, prompt, 12)
        ended = wanted[-1] == tokenizer.eos_token_id
        assert answer.ids == (wanted[:-1] if ended else wanted)
        assert answer.stopped == ended
    assert len({tuple(answer.ids) for answer in answers}) > 4


@pytest.mark.parametrize("told", [{"temperature": 0.5, "top_k": 5}, {"repeat_penalty": 1.4}])
def test_what_is_drawn_equals_what_transformers_draws(model, reference, tokenizer, told):
    """Side by side in three slots, and whichever rows an earlier run has answered.

    A draw may fall into the 1e-3 that llama.cpp's f16 cache moves a probability by.
    """
    decoding = Decoding(12, **told)
    prompts = [tokenizer(text).input_ids for text in [*TEXTS, "The dogs", "and 12", "Write"]]
    wanted = generate_batch(reference, tokenizer, prompts, decoding)
    found = model.generate(prompts, decoding)
    pairs = zip(found, wanted, strict=True)
    assert sum(ours.ids == theirs.ids for ours, theirs in pairs) >= len(prompts) - 3
    assert found != model.generate(prompts, Decoding(12))
    later = dict(model.answers(prompts[5:], decoding, range(5, len(prompts))))
    assert [later[place].ids for place in range(len(later))] == [one.ids for one in found[5:]]
    streamed = "".join(model.stream(prompts[6], decoding.for_row(6)))
    assert streamed.strip() == found[6].text


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M"])
def test_a_comparison_asks_as_one_person_does(kind, folder, tmp_path, tokenizer):
    """Whatever goes side by side must answer as it does alone; K-quants do not, and go alone."""
    file = tmp_path / "model.gguf"
    write_gguf(folder, file, kind)
    asked = Candidate("it", str(file), tokenizer=str(folder))
    prompts = [tokenizer(text).input_ids for text in TEXTS if text]
    with closing(open_engine(asked, Config().model, 64)) as engine:
        assert (engine.slots == 1) == (kind == "Q4_K_M")
        found = dict(engine.generate(prompts, Decoding(8)))
    with LlamaCpp(file, context=64, slots=1) as alone:
        wanted = alone.generate(prompts, Decoding(8))
    assert [found[row].ids for row in range(len(prompts))] == [one.ids for one in wanted]


def test_it_stops_at_eos(folder, tmp_path, reference, tokenizer):
    """The fourth token of an answer changes its row of the output layer with EOS."""
    prompt = tokenizer("The cat sat").input_ids
    free = expected_ids(reference, prompt, 8)
    fourth = free[3]
    assert fourth not in free[:3]
    state = load_file(folder / "model.safetensors")
    rows = state["lm_head.weight"]
    rows[[fourth, tokenizer.eos_token_id]] = rows[[tokenizer.eos_token_id, fourth]]
    copy_companions(folder, tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_gguf(tmp_path, tmp_path / "model.gguf", "F32")
    with LlamaCpp(tmp_path / "model.gguf", context=64, threads=1) as model:
        answer = model.generate([prompt], Decoding(8))[0]
        assert "".join(model.stream(prompt, Decoding(8))).strip() == answer.text
    assert answer.ids == free[:3] and answer.stopped


def losses_of(model, prompt: list[int], answer: list[int]) -> TokenLosses:
    ((_, losses),) = model.losses([(prompt, answer)])
    return losses


def test_losses_equal_transformers(model, reference, tokenizer):
    ids = tokenizer("The cat sat on the mat, and 12 dogs ran.").input_ids
    prompt, answer = ids[:5], ids[5:]
    found = losses_of(model, prompt, answer).nats
    with torch.inference_mode():
        logs = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [-logs[i - 1, ids[i]].item() for i in range(5, len(ids))]
    assert found == pytest.approx(wanted, rel=2e-3)
    assert losses_of(model, ids[:1], ids[1:]).nats[4:] == pytest.approx(found, rel=2e-3)


def test_losses_side_by_side_are_those_one_by_one(model, reference, tokenizer):
    """More pairs than slots, of different lengths; the likeliest token is transformers' choice."""
    texts = [
        "The cat sat on the mat.",
        "12 dogs ran",
        "今天天气很好",
        "Below is an instruction",
    ] * 3
    ids = [model.tokenize(text) for text in texts]
    found = dict(model.losses([(one[:2], one[2:]) for one in ids]))
    for row, one in enumerate(ids):
        alone = losses_of(model, one[:2], one[2:])
        assert found[row].nats == pytest.approx(alone.nats, rel=2e-3)
        logits = reference(torch.tensor([one])).logits[0, 1:-1]
        likeliest = logits.argmax(-1) == torch.tensor(one[2:])
        assert found[row].hits == likeliest.tolist()


def test_streaming_gives_the_same_text_and_can_be_left(model, tokenizer):
    prompt = tokenizer("The").input_ids
    text = model.generate([prompt], Decoding(20))[0].text
    assert "".join(model.stream(prompt, Decoding(20))).strip() == text
    for part in model.stream(prompt, Decoding(40)):
        assert text.startswith(part.lstrip())
        break
    assert model.generate([prompt], Decoding(20))[0].text == text


def test_leaving_a_stream_ends_the_generation(gguf, monkeypatch):
    with LlamaCpp(gguf, context=8192, threads=1) as model:
        received = []
        receive = model._receive
        monkeypatch.setattr(model, "_receive", lambda: received.append(receive()) or received[-1])
        for _ in model.stream([1], Decoding(8000)):
            break
        assert received[-1][0] == "done"
        assert len(received) < 1500  # of about 2000; how many depends on how soon we are heard


def test_margins_are_those_of_the_logits(model, reference, tokenizer):
    prompt, answer = tokenizer("The cat").input_ids, tokenizer(" sat on 12").input_ids[1:]
    with torch.inference_mode():
        logits = reference(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
    first, second = logits.topk(2).values.unbind(-1)
    assert model.margins(prompt, answer) == pytest.approx((first - second).tolist(), abs=5e-3)


def test_speed_is_measured(model, tokenizer):
    speed = model.speed(tokenizer("The cat").input_ids, new_tokens=8)
    assert 0 < speed.prompt < math.inf and 0 < speed.generation < math.inf
    assert model.load_seconds > 0


def test_a_prompt_beyond_the_context_is_refused_and_the_next_one_answered(model):
    with pytest.raises(InputError, match="context holds"):
        model.generate([[1] * (model.context + 1)], Decoding(4))
    with pytest.raises(InputError, match="context holds"):
        model.generate([[]], Decoding(4))
    assert model.generate([[1]], Decoding(1))[0].ids


def test_an_answer_ends_where_the_context_does(model):
    answer = model.generate([[1] * (model.context - 3)], Decoding(100))[0]
    assert not answer.stopped and len(answer.ids) <= 4


def test_files_that_are_no_model(gguf, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        LlamaCpp(tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(InputError, match="not a GGUF"):
        LlamaCpp(tmp_path / "text.gguf")
    (tmp_path / "short.gguf").write_bytes(gguf.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot load this file") as caught:
        LlamaCpp(tmp_path / "short.gguf")
    assert "tensor" in caught.value.why


def test_a_child_that_dies_or_hangs_is_told_and_ended(gguf):
    with LlamaCpp(gguf, context=64, threads=1) as model:
        os.kill(model._child.pid, 9)
        with pytest.raises(ResourceError, match="killed"):
            model.tokenize("x")
    with LlamaCpp(gguf, context=64, threads=1) as model:
        os.kill(model._child.pid, 6)
        with pytest.raises(InputError, match="exit code -6"):
            model.tokenize("x")
    with LlamaCpp(gguf, context=64, threads=1) as model:
        model.patience = 0.5  # only now: a busy machine may take longer to load
        os.kill(model._child.pid, 19)  # SIGSTOP
        with pytest.raises(ResourceError, match="no sign of life"):
            model.tokenize("x")


def test_a_child_that_does_not_leave_is_ended(gguf, monkeypatch):
    monkeypatch.setattr(llama_child, "_GOODBYE_SECONDS", 0.1)
    with LlamaCpp(gguf, context=64, threads=1) as model:
        os.kill(model._child.pid, 19)  # SIGSTOP
    assert model._child.returncode == -9


def test_the_child_leaves_by_itself(gguf, monkeypatch):
    """Not at the end of our patience, which is short: a busy machine may take longer."""
    monkeypatch.setattr(llama_child, "_GOODBYE_SECONDS", 120.0)
    with LlamaCpp(gguf, context=64, threads=1) as model:
        pass
    assert model._child.returncode == 0


def test_a_script_without_a_guard_runs_once(gguf, tmp_path):
    """The child must not import the script that started it: that cost seconds, or never ended."""
    library = Path(llama_library.__file__).parents[2]
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(library)!r}); print('run')\n"
        "from slimtune.inference.llama_cpp import LlamaCpp\n"
        f"with LlamaCpp({str(gguf)!r}, context=64, threads=1) as model:\n"
        "    print(model.tokenize('')[0])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["run", "1"]


def test_a_missing_wheel_is_named(gguf, monkeypatch):
    llama_library.library.cache_clear()
    monkeypatch.setattr(llama_library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="xllamacpp is not installed"):
        LlamaCpp(gguf)
    llama_library.library.cache_clear()
