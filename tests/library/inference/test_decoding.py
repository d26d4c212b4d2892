"""One decoding for every engine: drawn as llama.cpp draws, each row for itself."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from slimtune.config import GenerationSection
from slimtune.inference import generation
from slimtune.inference.answers import in_order
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_library import library
from slimtune.inference.sampling import Chooser

VOCABULARY = 500
WARM = Decoding(16, temperature=0.9, top_k=40, top_p=0.9, min_p=0.02, repeat_penalty=1.2, seed=3)
DECODINGS = {
    "greedy": Decoding(16),
    "greedy, penalty": Decoding(16, repeat_penalty=1.3),
    "temperature": Decoding(16, temperature=0.7, seed=1),
    "hot": Decoding(16, temperature=3.0, seed=2),
    "top-k": Decoding(16, temperature=1.0, top_k=5, seed=3),
    "one": Decoding(16, temperature=1.0, top_k=1, seed=4),
    "top-p": Decoding(16, temperature=1.0, top_p=0.8, seed=5),
    "min-p": Decoding(16, temperature=1.0, min_p=0.1, seed=6),
    "all": WARM,
}


class _Token(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class _Tokens(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.POINTER(_Token)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


class LlamaChain:
    """llama.cpp's own samplers in the order of its command line, for one answer."""

    def __init__(self, decoding: Decoding, prompt: list[int]) -> None:
        self.lib = ctypes.CDLL(library()._name)
        one, real = ctypes.c_size_t(0), ctypes.c_float
        made = [
            ("penalties", [VOCABULARY, 4096, real(decoding.repeat_penalty), real(0), real(0)]),
            ("top_k", [decoding.top_k]),
            ("top_p", [real(decoding.top_p), one]),
            ("min_p", [real(decoding.min_p), one]),
            ("temp", [real(decoding.temperature)]),
            ("dist", [ctypes.c_uint32(decoding.seed)]),
        ]
        self.samplers = []
        for name, arguments in made:
            start = getattr(self.lib, f"llama_sampler_init_{name}")
            start.restype = ctypes.c_void_p
            self.samplers.append(ctypes.c_void_p(start(*arguments)))
        for token in prompt:
            self.lib.llama_sampler_accept(self.samplers[0], token)

    def choose(self, logits: np.ndarray) -> int:
        data = (_Token * len(logits))(*((i, logit, 0.0) for i, logit in enumerate(logits)))
        tokens = _Tokens(data, len(logits), -1, False)
        for sampler in self.samplers:
            self.lib.llama_sampler_apply(sampler, ctypes.byref(tokens))
        token = tokens.data[tokens.selected].id
        self.lib.llama_sampler_accept(self.samplers[0], token)
        return token


@pytest.mark.parametrize("name", DECODINGS)
def test_every_token_is_the_one_that_llama_cpp_chooses(name: str) -> None:
    random, prompt = np.random.default_rng(7), [3, 4, 5]
    ours, theirs = Chooser(DECODINGS[name], prompt), LlamaChain(DECODINGS[name], prompt)
    rows = 3 * random.standard_normal((40, VOCABULARY)).astype(np.float32)
    rows[:, :12] += 6  # a few tokens that come again and again, so that the penalty has a say
    assert [ours.choose(row) for row in rows] == [theirs.choose(row) for row in rows]


def test_the_settings_say_all_and_are_greedy_by_default() -> None:
    assert Decoding.of(GenerationSection()) == Decoding(512) and Decoding(512).plain
    told = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repeat_penalty": 1.05}
    told |= {"max_new_tokens": 9, "seed": 11}
    found = Decoding.of(GenerationSection(**told))
    assert {name: getattr(found, name) for name in told} == told
    assert not found.greedy and not found.plain


def test_rows_draw_apart_and_the_first_from_the_seed_itself() -> None:
    decoding = Decoding(8, temperature=1.0, seed=2**32 - 3)
    assert decoding.for_row(0) == decoding
    seeds = {decoding.for_row(row).seed for row in range(1000)}
    assert len(seeds) == 1000 and max(seeds) < 2**32 - 1  # that one is llama.cpp's "any"


def answers(model, tokenizer, prompts, decoding, **options) -> list[str]:
    found = generation.generate(model, tokenizer, prompts, decoding, **options)
    return [one.text for one in in_order(found)]


def test_a_row_says_the_same_whoever_is_asked_beside_it_and_when(model, tokenizer, prompts) -> None:
    together = answers(model, tokenizer, prompts, WARM)
    assert answers(model, tokenizer, prompts, WARM, token_budget=80) == together
    resumed = dict(generation.generate(model, tokenizer, prompts, WARM, known=set(range(20))))
    assert all(one.text == together[row] for row, one in resumed.items())
    assert answers(model, tokenizer, prompts, replace(WARM, seed=4)) != together
    streamed = generation.stream(model, tokenizer, prompts[5], WARM.for_row(5))
    assert "".join(streamed).strip() == together[5]


def test_equal_prompts_draw_differently(model, tokenizer, prompts) -> None:
    hot = Decoding(12, temperature=2.0)
    assert len(set(answers(model, tokenizer, [prompts[0]] * 6, hot))) > 3


def test_the_penalty_alone_is_transformers_own(model, tokenizer, prompts) -> None:
    """Prompt tokens count; raw choices would be others."""
    penalised = Decoding(12, repeat_penalty=1.5)
    found = in_order(generation.generate(model, tokenizer, prompts[:8], penalised))
    for prompt, answer in zip(prompts, found, strict=False):
        told = {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.5}
        wanted = model.generate(torch.tensor([prompt]), pad_token_id=0, **told)[0, len(prompt) :]
        assert answer.ids == [token for token in wanted.tolist() if token != 2]
    assert answers(model, tokenizer, prompts[:8], Decoding(12)) != [one.text for one in found]
