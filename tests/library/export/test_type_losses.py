"""What takes back what a base learned since it lay on a grid is left out, and no other type is."""

import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from slimtune.export.allocation import smallest
from slimtune.export.gguf_writer import encode
from slimtune.export.imatrix import Sensitivity
from slimtune.export.plan import GgufPlan
from slimtune.export.preflight import preflight
from slimtune.export.quant_types import PLAIN
from slimtune.export.type_losses import type_losses


def unpacked(plan: GgufPlan, folder: Path, kind: Type, delta: float) -> GgufPlan:
    """The model of `plan` as one that lay in a file of `kind` and has learned since.

    All its columns count the same: scales are then free to find the old grid.
    """
    shutil.copytree(plan.folder, folder)
    file = folder / "model.safetensors"
    dice, weights = np.random.default_rng(3), load_file(file)
    for name, weight in weights.items():
        if weight.dim() == 2:
            values = weight.float().numpy()
            old = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
            steps = np.ptp(old.reshape(-1, 32), axis=1).repeat(32).reshape(old.shape) / 15
            learned = delta * steps * dice.uniform(-1, 1, old.shape)
            weights[name] = torch.tensor(old + learned, dtype=torch.float32)
    save_file(weights, file, metadata={"format": "pt"})
    shapes = {name: plan.shape(name) for name in plan.tensors if plan.is_matrix(name)}
    even = {name: Sensitivity(*(np.ones(n, np.float32) for n in s)) for name, s in shapes.items()}
    importance = replace(plan.encoding.importance, sensitivity=even)
    encoding = replace(plan.encoding, importance=importance)
    return smallest(replace(preflight(folder, "F16"), encoding=encoding))


def types_of(plan: GgufPlan) -> list[set[Type]]:
    return [{one.type for one in options} for options in type_losses(plan).values()]


def taken_back(plan: GgufPlan, name: str, kind: Type, old: Type) -> float:
    """Correlation of what `kind` adds with what would bring the weights back to their old grid."""
    encoder = plan.encoding.encoder
    values = plan.checkpoint.read_float32(plan.source[name])
    errors, learned = (
        encoder.decode(encode(plan, name, values, one), one, values.shape) - values
        for one in (kind, old)
    )
    return float((errors * learned).sum() / np.sqrt((errors**2).sum() * (learned**2).sum()))


@pytest.mark.parametrize("delta", [0.05, 0.15])
@pytest.mark.parametrize("kind", [Type.Q4_1, Type.Q4_0])
def test_no_type_takes_back_what_a_base_has_learned_since(
    plan, tmp_path, kind, delta, caplog
) -> None:
    """`delta`: what was learned since, in steps of the grid."""
    caplog.set_level("INFO")
    other = unpacked(plan, tmp_path / "near", kind, delta)
    finer = {Type.Q4_1: Type.Q5_1, Type.Q4_0: Type.Q5_0}[kind]
    options = {name: {one.type for one in found} for name, found in type_losses(other).items()}
    assert not any({kind, finer} & types for types in options.values())
    assert all({Type.Q2_K, Type.Q8_0, Type.F16} <= types for types in options.values())
    name = "blk.0.ffn_up.weight"
    assert taken_back(other, name, finer, kind) > 0.8
    for one in options[name] - set(PLAIN):
        assert taken_back(other, name, one, kind) < 0.4  # of some rows less than 0.3
    assert kind.name in caplog.text.split("left out: ")[1].split(".")[0]


def test_a_base_as_it_came_keeps_the_type_that_loses_nothing(plan, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    came = unpacked(plan, tmp_path / "n", Type.Q4_1, 0)
    assert all(Type.Q4_1 in types for types in types_of(came))
    assert "left out" not in caplog.text


def test_of_a_model_of_16_bits_no_type_is_left_out(plan, caplog) -> None:
    caplog.set_level("INFO")
    assert all({Type.Q4_1, Type.Q4_0, Type.Q5_1} <= types for types in types_of(plan))
    assert "left out" not in caplog.text
