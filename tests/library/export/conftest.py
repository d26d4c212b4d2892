"""Model folders that several export tests only read."""

from pathlib import Path

import pytest
from taught_llama import write_taught_llama
from tiny_folders import write_tiny_llama


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
def taught(tmp_path_factory) -> Path:
    """Sure of what it says: no last digit decides."""
    return write_taught_llama(tmp_path_factory.mktemp("taught"))
