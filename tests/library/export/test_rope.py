"""Position scaling against transformers' own frequencies, and as metadata."""

import json

import gguf
import numpy as np
import pytest
from tiny_folders import write_tiny_llama
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from slimtune.export import architecture
from slimtune.export.architecture import Unsupported
from slimtune.export.gguf_writer import write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3s_divisors_are_those_of_transformers(factor):
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, rope_parameters=LLAMA3 | {"factor": factor}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    found = architecture.factors(architecture.read_rope(config.to_dict()), 128)
    assert found.dtype == np.float32
    assert found == pytest.approx(plain / scaled.numpy(), rel=1e-5)
    assert (found == 1).any() and (found == factor).any()
    assert ((found > 1) & (found < factor)).any()


def test_llama3s_divisors_are_a_tensor_of_the_file(tmp_path):
    folder = write_tiny_llama(tmp_path / "model", rope_parameters=LLAMA3)
    write_gguf(folder, tmp_path / "out.gguf", "Q4_K_M")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert list(tensors)[2] == "rope_freqs.weight"  # by name, among those of no layer
    config = json.loads((folder / "config.json").read_text())
    assert np.array_equal(
        tensors["rope_freqs.weight"].data,
        architecture.factors(architecture.read_rope(config), 256 // 4),
    )


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            {"type": "yarn", "factor": 4.0, "original_context_length": 64},
        ),
    ],
)
def test_linear_and_yarn_are_metadata(tmp_path, parameters, expected):
    folder = write_tiny_llama(tmp_path / "model", hidden=64)
    config = json.loads((folder / "config.json").read_text()) | {"rope_theta": 5000.0}
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": parameters}))
    write_gguf(folder, tmp_path / "out.gguf", "F16")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    found = {key: fields[f"llama.rope.scaling.{key}"].contents() for key in expected}
    assert found == expected
    assert fields["llama.rope.freq_base"].contents() == 5000


@pytest.mark.parametrize(
    "more", [{"attention_factor": 1.3}, {"beta_slow": 2.0}, {"mscale": 1.0, "mscale_all_dim": 0.5}]
)
def test_a_yarn_that_llama_cpp_would_compute_otherwise_is_refused(tmp_path, more):
    """Measured: with each of these llama.cpp answers differently than transformers."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    folder = write_tiny_llama(tmp_path / "model", hidden=64, rope_parameters=yarn)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] |= more
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="YaRN with"):
        write_gguf(folder, tmp_path / "out.gguf", "F16")
    usual = {"attention_factor": 1 + 0.1 * np.log(4), "beta_fast": 32.0, "beta_slow": 1.0}
    config["rope_parameters"] = yarn | usual | {"rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    write_gguf(folder, tmp_path / "out.gguf", "F16")
