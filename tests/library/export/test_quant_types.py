"""The mixtures against what llama.cpp prints when it loads its own well-known files."""

from collections import Counter

import pytest

from slimtune.errors import SettingsError
from slimtune.export.quant_types import choose_types, encoded_bytes, quantization


def llama(layers: int, hidden: int, ffn: int, kv: int, tied: bool = False) -> dict:
    """GGUF names and shapes of a Llama in file order."""
    shapes = {} if tied else {"output.weight": (32000, hidden)}
    shapes |= {"output_norm.weight": (hidden,), "token_embd.weight": (32000, hidden)}
    layer = {
        "attn_k": (kv, hidden),
        "attn_norm": (hidden,),
        "attn_output": (hidden, hidden),
        "attn_q": (hidden, hidden),
        "attn_v": (kv, hidden),
        "ffn_down": (hidden, ffn),
        "ffn_gate": (ffn, hidden),
        "ffn_norm": (hidden,),
        "ffn_up": (ffn, hidden),
    }
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


SEVEN = llama(32, 4096, 11008, 4096)
TINY = llama(22, 2048, 5632, 256)
SEVENTY = llama(80, 8192, 28672, 1024)


# "type f32: 65 tensors, type q4_K: 193 tensors, …" in llama.cpp's log of these models' files
@pytest.mark.parametrize(
    ("shapes", "name", "expected"),
    [
        (SEVEN, "F16", {"F32": 65, "F16": 226}),
        (SEVEN, "Q8_0", {"F32": 65, "Q8_0": 226}),
        (SEVEN, "Q4_0", {"F32": 65, "Q4_0": 225, "Q6_K": 1}),
        (SEVEN, "Q4_K_M", {"F32": 65, "Q4_K": 193, "Q6_K": 33}),
        (SEVEN, "Q5_K_M", {"F32": 65, "Q5_K": 193, "Q6_K": 33}),
        (TINY, "Q4_K_M", {"F32": 45, "Q4_K": 135, "Q6_K": 21}),
        (SEVENTY, "Q4_K_M", {"F32": 161, "Q4_K": 441, "Q5_K": 40, "Q6_K": 81}),
    ],
)
def test_known_files(shapes, name, expected):
    choices = choose_types(shapes, name, seventy_billion=shapes is SEVENTY)
    assert Counter(choice.type.name for choice in choices.values()) == expected
    assert not any(choice.fallback for choice in choices.values())


def test_known_size_of_llama_2_7b():
    """llama-2-7b.Q4_K_M.gguf has 4,081,004,224 bytes, of which about 0.7 MB are metadata."""
    choices = choose_types(SEVEN, "Q4_K_M", seventy_billion=False)
    size = sum(encoded_bytes(SEVEN[name], choice.type) for name, choice in choices.items())
    assert 4_079_000_000 < size < 4_081_004_224


def test_rows_that_do_not_divide_fall_back_and_are_named():
    shapes = llama(2, 64, 72, 32, tied=True)
    choices = choose_types(shapes, "Q4_K_M", seventy_billion=False)
    assert choices["token_embd.weight"].type.name == "Q8_0"
    assert choices["blk.0.attn_q.weight"].type.name == "Q5_0"
    assert choices["blk.0.ffn_down.weight"].type.name == "F16"
    norms = [name for name in shapes if name.endswith("norm.weight")]
    assert all(choices[name].fallback != (name in norms) for name in shapes)


def test_without_library_q4_0_keeps_its_output_at_q8_0():
    choices = choose_types(SEVEN, "Q4_0", seventy_billion=False, k_quants=False)
    assert choices["output.weight"].type.name == "Q8_0"
    assert [name for name, choice in choices.items() if choice.fallback] == ["output.weight"]


def test_unknown_type_is_refused_with_the_list():
    with pytest.raises(SettingsError, match="Q4_K_M"):
        quantization("Q4_K")
