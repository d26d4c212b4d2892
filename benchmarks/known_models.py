"""QUICK_START's table of base models: languages, size, memory in each mode, licence and prompt.

    python benchmarks/known_models.py                # English
    python benchmarks/known_models.py --language zh  # Chinese, those that know Chinese best first

Sizes are those of each model's own config.json on the Hub, languages and licence those that its
makers name. The memory is what `--dry-run` estimates: of train_lora.py for a GPU, with LoRA of rank
8 on all linear layers, one row of 512 tokens a step, activation checkpointing; of
convert_to_gguf.py for a Q4_K_M file, its tensors and the cache of 4,096 tokens. No weights are read
and nothing is downloaded.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "finetune"))

from slimtune.export.gguf_writer import padded
from slimtune.export.quant_types import choose_types, encoded_bytes
from slimtune.export.tensors import file_order
from slimtune.models.memory import Recipe, training
from slimtune.models.model_shape import ModelShape, gguf_tensor_name

TOKENS = 512
RANK = 8
CONTEXT = 4096  # of a file that answers


@dataclass(frozen=True)
class Known:
    """A model by its name on the Hub: sizes of its config.json, and whose prompt it has.

    `chinese`: whether its makers trained it for Chinese; `languages`: what they name, a key of
    LANGUAGES.
    """

    name: str
    model_type: str
    sizes: tuple[int, int, int, int, int, int, int]
    prompt: str
    tied: bool = False
    chinese: bool = False
    languages: str = "english"
    licence: str = "Apache 2.0"

    @property
    def config(self) -> dict:
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        names += ("num_attention_heads", "num_key_value_heads", "head_dim")
        sizes = dict(zip(names, self.sizes, strict=True))
        return sizes | {"model_type": self.model_type, "tie_word_embeddings": self.tied}

    @property
    def shape(self) -> ModelShape:
        return ModelShape.of(self.config)

    def memory(self, quantization: str, *, full: bool = False) -> str:
        """GB of a GPU to train an adapter or, `full`, all weights, by the estimate of --dry-run."""
        trained = None if full else self.shape.adapter_parameters(RANK, ["all-linear"])
        recipe = Recipe(trained, 2, quantization, activation_checkpointing=True, device="cuda")
        return _gigabytes(training(self.config, recipe, TOKENS).total)

    def served(self, context: int = CONTEXT) -> int:
        """Bytes of a Q4_K_M file's tensors and of its cache of so many tokens in F16."""
        shape = self.shape
        tensors = {gguf_tensor_name(shape, name): size for name, size in shape.tensors.items()}
        ordered = {name: tensors[name] for name in sorted(tensors, key=file_order)}
        types = choose_types(ordered, "Q4_K_M")
        weights = sum(padded(encoded_bytes(ordered[name], types[name].type)) for name in ordered)
        return weights + 2 * shape.layers * shape.kv_width * context * 2

    @property
    def size(self) -> str:
        """Parameters as people say them."""
        count = self.shape.parameters
        return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _qwen3(name: str, *sizes: int, tied: bool = True) -> Known:
    prompt = "ChatML, `<think>`"
    return Known(f"Qwen/Qwen3-{name}", "qwen3", (151936, *sizes), prompt, tied, True, "qwen3")


def _qwen2(name: str, *sizes: int, tied: bool = True, licence: str = "Apache 2.0") -> Known:
    sizes = (151936 if tied else 152064, *sizes)
    named = f"Qwen/Qwen2.5-{name}-Instruct"
    return Known(named, "qwen2", sizes, "ChatML", tied, True, "qwen2", licence)


# vocabulary, hidden, FFN, layers, heads, KV heads, head size
MODELS = [
    Known(
        "meta-llama/Llama-2-7b-chat-hf",
        "llama",
        (32000, 4096, 11008, 32, 32, 32, 128),
        "llama2",
        licence="Llama 2",
    ),
    Known(
        "meta-llama/Llama-3.2-1B-Instruct",
        "llama",
        (128256, 2048, 8192, 16, 32, 8, 64),
        "Llama-3",
        tied=True,
        languages="llama3",
        licence="Llama 3.2",
    ),
    Known(
        "meta-llama/Llama-3.2-3B-Instruct",
        "llama",
        (128256, 3072, 8192, 28, 24, 8, 128),
        "Llama-3",
        tied=True,
        languages="llama3",
        licence="Llama 3.2",
    ),
    Known(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "llama",
        (32000, 2048, 5632, 22, 32, 4, 64),
        "Zephyr",
    ),
    Known(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llama",
        (49152, 576, 1536, 30, 9, 3, 64),
        "ChatML",
        tied=True,
    ),
    Known(
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "llama",
        (49152, 960, 2560, 32, 15, 5, 64),
        "ChatML",
        tied=True,
    ),
    Known(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "llama",
        (49152, 2048, 8192, 24, 32, 32, 64),
        "ChatML",
        tied=True,
    ),
    Known(
        "mistralai/Mistral-7B-Instruct-v0.3",
        "mistral",
        (32768, 4096, 14336, 32, 32, 8, 128),
        "Mistral",
    ),
    _qwen3("0.6B", 1024, 3072, 28, 16, 8, 128),
    _qwen3("1.7B", 2048, 6144, 28, 16, 8, 128),
    _qwen3("4B", 2560, 9728, 36, 32, 8, 128),
    _qwen2("0.5B", 896, 4864, 24, 14, 2, 64),
    _qwen2("1.5B", 1536, 8960, 28, 12, 2, 128),
    _qwen2("3B", 2048, 11008, 36, 16, 2, 128, licence="Qwen Research"),
    _qwen2("7B", 3584, 18944, 28, 28, 4, 128, tied=False),
]

# What the makers name, in each language of the documents.
LANGUAGES = {
    "english": {"en": "English", "zh": "英语"},
    "llama3": {"en": "8, no Chinese", "zh": "8 种，不含中文"},
    "qwen2": {"en": "over 29 with Chinese", "zh": "29 种以上，含中文"},
    "qwen3": {"en": "119 with Chinese", "zh": "119 种，含中文"},
}
HEADERS = {
    "en": "| model | languages | parameters | all weights | LoRA, 16 bits | QLoRA, 4 bits "
    "| answering, Q4_K_M | licence | its prompt |",
    "zh": "| 模型 | 语言 | 参数量 | 全部权重 | LoRA，16 位 | QLoRA，4 位 "
    "| 推理，Q4_K_M | 许可证 | 提示词模板 |",
}


def table(language: str) -> list[str]:
    """The lines of the table; Chinese readers get the models made for Chinese first."""
    first = (lambda one: not one.chinese) if language == "zh" else (lambda one: 0)
    lines = [HEADERS[language], "|---" * 9 + "|"]
    for one in sorted(MODELS, key=first):
        trained = [one.memory("none", full=True), one.memory("none"), one.memory("nf4")]
        cells = [f"`{one.name}`", LANGUAGES[one.languages][language], one.size, *trained]
        cells += [_gigabytes(one.served()), one.licence, one.prompt]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", choices=HEADERS, default="en")
    print("\n".join(table(parser.parse_args().language)))
