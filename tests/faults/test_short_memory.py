"""Too little memory, told by whoever meets it first: exit 4, with what takes less."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from running import refused
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.faults

IN_VAIN = {
    "the allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to "
                                  "allocate 655360 bytes. Error code 12 (Cannot allocate memory)"),
    "oneDNN": RuntimeError("could not create a primitive"),
    "Python": MemoryError(),
    "the loader": OSError(12, "Cannot allocate memory"),
}  # fmt: skip


@pytest.mark.parametrize("words", IN_VAIN)
def test_memory_that_ends_while_a_model_is_loaded(words, settings, rows, tmp_path, monkeypatch):
    """transformers' errors are otherwise the model's fault, and this is not."""

    def fail(*_: object, **__: object) -> None:
        raise IN_VAIN[words]

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    said = refused(4, "out of memory", "train_lora", *settings, "--output-dir", tmp_path / "out")
    assert "--batch-size" in said[-1] or "smaller model" in said[-1]
    assert not (tmp_path / "out" / "lora_adapter").exists()


def test_a_limit_in_which_not_even_torch_can_be_loaded(tmp_path) -> None:
    if sys.platform != "linux":
        pytest.skip("`ulimit -v` is Linux's")
    (tmp_path / "config.yaml").write_text("model: {device: cpu}\n", encoding="utf-8")
    script = importlib.import_module("train_lora").__file__
    words = f"--config '{tmp_path}/config.yaml' --output-dir '{tmp_path}/out'"
    command = f"ulimit -v 300000; exec '{sys.executable}' '{script}' {words}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("error: out of memory")
    assert "this process may have 307.2 MB" in done.stderr and not (Path(tmp_path) / "out").exists()
