"""Ratios, and a number of parameters, become sizes that a model can have; or are refused."""

from dataclasses import replace

import pytest

from slimtune.errors import InputError, SettingsError
from slimtune.models.model_shape import ModelShape
from slimtune.pruning.sizes import ROW, Ratios, rounded, smaller, steps, with_groups

LLAMA_7B = ModelShape(32000, 4096, 11008, 32, 32, 32, 128, False, frozenset())
TINY_LLAMA = ModelShape(32000, 2048, 5632, 22, 32, 4, 64, False, frozenset())
STORIES = ModelShape(512, 64, 172, 5, 8, 4, 8, True, frozenset())
SMOLLM2 = ModelShape(49152, 576, 1536, 30, 9, 3, 64, True, frozenset())  # 135M
QWEN3 = ModelShape(151936, 1024, 3072, 28, 16, 8, 128, True, frozenset())  # 0.6B


@pytest.mark.parametrize(
    ("neurons", "ratio", "left"),
    [
        (11008, 0.25, 8192),
        (11008, 0.33, 7424),
        (5632, 0.25, 4352),
        (768, 0.33, 512),
        (512, 0.99, 32),
        (1024, 0.99, 256),
        (172, 0.25, 128),
        (172, 0.99, 32),
        (48, 0.25, 40),
    ],
)
def test_the_size_left_is_the_nearest_multiple(neurons, ratio, left):
    shape = replace(LLAMA_7B, ffn=neurons)
    assert smaller(shape, Ratios(ffn=ratio)).ffn == left


def test_where_no_k_quant_profits_a_ratio_is_met():
    """Rows of 576 and 896 get other types anyway, and a few thousand weights need none."""
    assert smaller(SMOLLM2, Ratios(ffn=0.25)).ffn == 1152
    qwen = replace(QWEN3, hidden=896, ffn=4864, heads=14, kv_heads=2, head_dim=64)
    assert smaller(qwen, Ratios(ffn=0.25)).ffn == 3648
    assert smaller(SMOLLM2, Ratios(hidden=0.2)).hidden == 448
    assert smaller(replace(SMOLLM2, kv_heads=9), Ratios(groups=0.2)).heads == 7
    assert smaller(STORIES, Ratios(ffn=0.1)).ffn == 160
    for shape in (SMOLLM2, qwen):
        assert rounded(shape, smaller(shape, Ratios(ffn=0.25)), Ratios(ffn=0.25)) == []


def test_where_k_quants_profit_rows_stay_rows_of_256():
    left = smaller(QWEN3, Ratios(ffn=0.2, hidden=0.2, groups=0.3))
    assert left.ffn % ROW == left.hidden % ROW == (left.heads * left.head_dim) % ROW == 0
    # Where the hidden size stops being one, nothing else has to be.
    odd = replace(QWEN3, hidden=1000)
    assert smaller(odd, Ratios(ffn=0.2)).ffn == 2464


@pytest.mark.parametrize(
    ("shape", "ratios", "words"),
    [
        (
            QWEN3,
            Ratios(ffn=0.2),
            ["ffn_ratio 0.2 became 0.167: 2560 of 3072 are left, a multiple of 256; K-quants"],
        ),
        (QWEN3, Ratios(ffn=0.25), []),
        (STORIES, Ratios(ffn=0.25), ["ffn_ratio 0.25 became 0.256: 128 of 172 are left, a mult"]),
        (LLAMA_7B, Ratios(groups=0.3), ["kv_group_ratio 0.3 became 0.312: 22 of 32 are left, for"]),
        (
            TINY_LLAMA,
            Ratios(layers=0.25),
            ["layer_ratio 0.25 became 0.227: 17 of 22 are left, for"],
        ),
        (
            QWEN3,
            Ratios(hidden=0.2, layers=0.3),
            ["hidden_ratio 0.2 became 0.25", "layer_ratio 0.3"],
        ),
        (LLAMA_7B, Ratios(parameters=5 * 10**9, ffn=0.3), []),
    ],
)
def test_what_a_ratio_became_is_said(shape, ratios, words):
    found = rounded(shape, smaller(shape, ratios), ratios)
    assert len(found) == len(words)
    for said, begin in zip(found, words, strict=True):
        assert said.startswith(begin)


@pytest.mark.parametrize(("neurons", "ratio"), [(1024, 0.1), (128, 0.05), (11008, 0.001), (768, 1)])
def test_a_ratio_that_is_no_cut_names_one_that_is(neurons, ratio):
    shape = replace(LLAMA_7B, ffn=neurons)
    with pytest.raises(SettingsError, match="pruning.ffn_ratio") as error:
        smaller(shape, Ratios(ffn=ratio))
    cure = float(error.value.cure.rsplit(" ", 1)[1])
    assert smaller(shape, Ratios(ffn=cure)).ffn < neurons


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (Ratios(), "every ratio is 0"),
        (Ratios(groups=0.01), "leaves all of 32 KV groups"),
        (Ratios(groups=1), "leaves none of 32 KV groups"),
        (Ratios(layers=0.01), "leaves all of 32 layers"),
        (Ratios(layers=1), "leaves none of 32 layers"),
        (Ratios(hidden=0.01), "leaves all of 4096 hidden channels"),
        (Ratios(parameters=10**6), "cannot be reached"),
        (Ratios(parameters=7 * 10**9), "cannot be reached"),
    ],
)
def test_what_cannot_be_cut_is_refused(ratios, words):
    with pytest.raises(SettingsError, match=words):
        smaller(LLAMA_7B, ratios)


def test_the_only_group_and_the_smallest_ffn_stay():
    with pytest.raises(SettingsError, match="one KV group"):
        smaller(replace(LLAMA_7B, kv_heads=1), Ratios(groups=0.5))
    with pytest.raises(InputError, match="too few"):
        smaller(replace(LLAMA_7B, ffn=8), Ratios(ffn=0.5))


def test_groups_keep_their_query_heads_and_rows_of_256():
    assert smaller(STORIES, Ratios(groups=0.25)) == with_groups(STORIES, 3)
    left = smaller(LLAMA_7B, Ratios(groups=0.3))
    assert (left.kv_heads, left.heads) == (22, 22) and left.heads * left.head_dim % 256 == 0
    assert smaller(TINY_LLAMA, Ratios(groups=0.25)).heads == 24


@pytest.mark.parametrize("target", [3e9, 4.2e9, 5e9, 6e9])
def test_a_number_of_parameters_is_met_as_closely_as_rounding_allows(target):
    found = smaller(LLAMA_7B, Ratios(parameters=round(target)))
    step = 3 * 256 * 4096 * 32  # one step of FFN size in all layers
    assert abs(found.parameters - target) <= step / 2
    assert abs(found.ffn / 11008 - found.kv_heads / 32) < 0.09
    again = smaller(LLAMA_7B, Ratios(parameters=round(target)))
    assert again == found


def test_a_number_of_parameters_goes_with_layers_and_channels_cut_by_ratio():
    found = smaller(LLAMA_7B, Ratios(parameters=4 * 10**9, layers=0.25))
    assert found.layers == 24 and abs(found.parameters / 4e9 - 1) < 0.01


def test_large_cuts_go_in_steps_of_a_third():
    assert steps(LLAMA_7B, smaller(LLAMA_7B, Ratios(ffn=0.25))) == [
        smaller(LLAMA_7B, Ratios(ffn=0.25))
    ]
    target = smaller(LLAMA_7B, Ratios(ffn=0.7, groups=0.5))
    way = [LLAMA_7B, *steps(LLAMA_7B, target)]
    assert way[-1] == target and len(way) == 4
    for before, after in zip(way, way[1:], strict=False):
        assert 0.6 < after.ffn / before.ffn < 1 and 0.5 <= after.kv_heads / before.kv_heads <= 1
        assert after.ffn % 256 == 0 and after.hidden % after.heads == 0
