"""A type on whose grid a base lay takes the training back: it is left out, and no other is."""

import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from slimtune.export.plan import GgufPlan
from slimtune.export.preflight import preflight
from slimtune.export.type_losses import type_losses

KIND = Type.Q4_0


def unpacked(plan: GgufPlan, folder: Path, delta: float) -> GgufPlan:
    """The model of `plan` as one that lay in a file of KIND and has learned since."""
    shutil.copytree(plan.folder, folder)
    file = folder / "model.safetensors"
    dice, weights = np.random.default_rng(3), load_file(file)
    for name, weight in weights.items():
        if weight.dim() == 2:
            values = weight.float().numpy()
            old = gguf.quants.dequantize(gguf.quants.quantize(values, KIND), KIND)
            steps = np.ptp(old.reshape(-1, 32), axis=1).repeat(32).reshape(old.shape) / 15
            learned = delta * steps * dice.uniform(-1, 1, old.shape)
            weights[name] = torch.tensor(old + learned, dtype=torch.float32)
    save_file(weights, file, metadata={"format": "pt"})
    other = preflight(folder, "F16")
    return replace(other, encoding=plan.encoding)


def types_of(plan: GgufPlan) -> list[set[Type]]:
    return [{one.type for one in options} for options in type_losses(plan).values()]


@pytest.mark.parametrize("delta", [0.05, 0.15])
def test_the_type_that_a_trained_base_came_in_is_left_out(plan, tmp_path, delta, caplog) -> None:
    """`delta`: what was learned since, in steps of the grid."""
    caplog.set_level("INFO")
    near = types_of(unpacked(plan, tmp_path / "near", delta))
    assert not any(KIND in types for types in near)
    assert all(Type.Q8_0 in types and Type.Q5_0 in types for types in near)
    assert f"{KIND.name} is left out" in caplog.text


def test_a_base_as_it_came_keeps_the_type_that_loses_nothing(plan, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    assert all(KIND in types for types in types_of(unpacked(plan, tmp_path / "n", 0)))
    assert "left out" not in caplog.text


def test_of_a_model_of_16_bits_no_type_is_left_out(plan, caplog) -> None:
    caplog.set_level("INFO")
    assert all({Type.Q4_0, Type.Q4_K, Type.Q5_0} <= types for types in types_of(plan))
    assert "left out" not in caplog.text
