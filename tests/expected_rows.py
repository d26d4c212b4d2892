"""A tensor of a GGUF worked out again from the model folder, without the writer."""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file

HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def expected_rows(folder: Path, name: str, heads: int = 4, kv_heads: int = 2) -> np.ndarray:
    """A tensor as llama.cpp wants it, straight from the safetensors file."""
    *layer, short, _ = name.split(".")
    prefix = f"model.layers.{layer[1]}." if layer else ""
    tensor = load_file(folder / "model.safetensors")[f"{prefix}{HF_NAMES[short]}.weight"].float()
    if short in ("attn_q", "attn_k"):
        count = heads if short == "attn_q" else kv_heads
        tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
    return tensor.numpy()
