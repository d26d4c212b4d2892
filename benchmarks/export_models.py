"""Random Llamas of known shapes on disk, as large as they are in life, and an adapter for them."""

import json
import math
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from measuring import FINETUNE

sys.path.insert(0, str(FINETUNE))
_SEED = 20
_RANK = 8


@dataclass(frozen=True)
class Shape:
    """A Llama with Llama-2's vocabulary."""

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    shard_bytes: int = 500_000_000

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }

    @property
    def parameters(self) -> int:
        return sum(math.prod(size) for size in _tensors(self).values())


VOCABULARY = 32_000
# From these llama.cpp's converter writes the general.sampling.* that we write for greedy decoding.
_GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty_repeat": 1.0}
SHAPES = {
    "small": Shape("a tiny Llama", 256, 768, 4, 4, 2, 20_000_000),
    "1.1b": Shape("1.1 B (TinyLlama)", 2048, 5632, 22, 32, 4),
    "7b": Shape("6.7 B (Llama-2-7B)", 4096, 11008, 32, 32, 32, 2_000_000_000),
}


def write_model(folder: Path, shape: Shape, tokenizer: Path) -> None:
    """A random bfloat16 model in shards, with Llama-2's tokenizer; what is there is kept."""
    if (folder / "config.json").is_file():
        return
    import torch

    from slimtune.models import tokenizers
    from slimtune.models.weights import CheckpointWriter

    generator = torch.Generator().manual_seed(_SEED)
    spec = {name: (torch.bfloat16, size) for name, size in _tensors(shape).items()}
    with CheckpointWriter(folder, spec, shard_bytes=shape.shard_bytes) as writer:
        for name, (dtype, size) in spec.items():
            step = max(1, (1 << 22) // (size[1] if len(size) > 1 else 1))
            for start in range(0, size[0], step):
                part = (min(step, size[0] - start), *size[1:])
                rows = torch.randn(part, generator=generator) * 0.02
                writer.write(name, (rows + (len(size) == 1)).to(dtype), start)
    tokenizers.save_tokenizer(tokenizers.from_sentencepiece(tokenizer), folder, tokenizer.parent)
    if not (folder / tokenizer.name).is_file():
        shutil.copy(tokenizer, folder)
    (folder / "generation_config.json").write_text(json.dumps(_GREEDY), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2), encoding="utf-8")


def write_adapter(folder: Path, base: Path, shape: Shape) -> None:
    """A LoRA adapter on every linear layer, both factors random, as peft would have saved it."""
    if (folder / "adapter_config.json").is_file():
        return
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(_SEED + 1)
    tensors = {}
    for layer in range(shape.layers):
        for name, (rows, columns) in shape.linears.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(_RANK, columns) * 0.02
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, _RANK) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": _RANK,
        "lora_alpha": 2 * _RANK,
        "target_modules": sorted(name.split(".")[1] for name in shape.linears),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def same_files(one: Path, two: Path) -> bool:
    """What `cmp` says, a megabyte at a time."""
    with one.open("rb") as a, two.open("rb") as b:
        while True:
            first, second = a.read(1 << 20), b.read(1 << 20)
            if first != second:
                return False
            if not first:
                return True


class Disk:
    """The largest number of bytes that lay under a folder while the block ran."""

    def __init__(self, folder: Path) -> None:
        self.peak = 0
        self._folder, self._over = folder, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.peak = max(self.peak, sum(map(_allocated, self._folder.rglob("*"))))


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512 if path.suffix != ".json" else 0
    except OSError:
        return 0


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": size for name, size in shape.linears.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = (shape.hidden,)
    return tensors | {
        "model.norm.weight": (shape.hidden,),
        "lm_head.weight": (VOCABULARY, shape.hidden),
    }


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
