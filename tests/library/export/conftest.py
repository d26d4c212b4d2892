"""Model folders that several export tests only read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_folders import write_tiny_llama

from slimtune.export.imatrix import Importance, Sensitivity
from slimtune.export.plan import GgufPlan
from slimtune.export.preflight import preflight


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """Hidden 256, separate output matrix: K-quants apply everywhere."""
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def narrow(tmp_path_factory) -> Path:
    """Hidden 64, FFN 72, tied embeddings: K-quants fall back, and ffn_down to F16."""
    return write_tiny_llama(
        tmp_path_factory.mktemp("narrow"), hidden=64, intermediate_size=72, tie_word_embeddings=True
    )


@pytest.fixture(scope="session")
def plan(llama) -> GgufPlan:
    """Of a Llama whose rows take every type, with a sensitivity."""
    plan = preflight(llama, "F16")
    return replace(plan, encoding=replace(plan.encoding, importance=_sensitive(plan)))


def _sensitive(plan: GgufPlan) -> Importance:
    """A sensitivity by chance: rows, columns and matrices differ by orders of magnitude."""
    dice = np.random.default_rng(0)
    found = {}
    for name in (one for one in plan.tensors if plan.is_matrix(one)):
        rows, columns = (np.exp(2 * dice.normal(size=length)) for length in plan.shape(name))
        rows *= columns.sum() / rows.sum()
        scale = 10 * np.exp(dice.normal())
        found[name] = Sensitivity(
            (scale * rows).astype(np.float32), (scale * columns).astype(np.float32)
        )
    return Importance({}, "i.gguf", "rows", 1, found)
