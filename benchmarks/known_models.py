"""QUICK_START's table of models: family, prompt template, rate and memory of models people use.

    python benchmarks/known_models.py                # English
    python benchmarks/known_models.py --language zh  # Chinese, those that know Chinese best first

Sizes are those of each model's own config.json on the Hub. The memory is what `--dry-run` of
train_lora.py estimates for a GPU: LoRA of rank 8 on all linear layers, one row of 512 tokens a
step, activation checkpointing. No weights are read and nothing is downloaded.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "finetune"))

from slimtune.models.family import ModelShape
from slimtune.models.memory import Recipe, training
from slimtune.training.rates import usual_rate

TOKENS = 512
RANK = 8


@dataclass(frozen=True)
class Known:
    """A model by its name on the Hub: sizes of its config.json, and whose prompt it has.

    `chinese`: whether its makers trained it for Chinese.
    """

    name: str
    model_type: str
    sizes: tuple[int, int, int, int, int, int, int]
    prompt: str
    tied: bool = False
    chinese: bool = False

    @property
    def config(self) -> dict:
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        names += ("num_attention_heads", "num_key_value_heads", "head_dim")
        sizes = dict(zip(names, self.sizes, strict=True))
        return sizes | {"model_type": self.model_type, "tie_word_embeddings": self.tied}

    @property
    def shape(self) -> ModelShape:
        return ModelShape.of(self.config)

    def memory(self, quantization: str) -> str:
        """GB of a GPU, by the estimate of --dry-run."""
        trained = self.shape.adapter_parameters(RANK, ["all-linear"])
        recipe = Recipe(trained, 2, quantization, activation_checkpointing=True, device="cuda")
        return f"{training(self.config, recipe, TOKENS).total / 1e9:.1f} GB"


def _qwen3(name: str, *sizes: int, tied: bool = True) -> Known:
    return Known(f"Qwen/Qwen3-{name}", "qwen3", (151936, *sizes), "ChatML, `<think>`", tied, True)


def _qwen2(name: str, *sizes: int, tied: bool = True) -> Known:
    rows = 151936 if tied else 152064
    return Known(f"Qwen/Qwen2.5-{name}-Instruct", "qwen2", (rows, *sizes), "ChatML", tied, True)


# vocabulary, hidden, FFN, layers, heads, KV heads, head size
MODELS = [
    Known(
        "meta-llama/Llama-2-7b-chat-hf",
        "llama",
        (32000, 4096, 11008, 32, 32, 32, 128),
        "llama2",
    ),
    Known(
        "meta-llama/Llama-3.2-1B-Instruct",
        "llama",
        (128256, 2048, 8192, 16, 32, 8, 64),
        "Llama-3",
        tied=True,
    ),
    Known(
        "meta-llama/Llama-3.2-3B-Instruct",
        "llama",
        (128256, 3072, 8192, 28, 24, 8, 128),
        "Llama-3",
        tied=True,
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
    _qwen2("3B", 2048, 11008, 36, 16, 2, 128),
    _qwen2("7B", 3584, 18944, 28, 28, 4, 128, tied=False),
]

HEADERS = {
    "en": "| model | family | its prompt | LoRA rate | LoRA, 16 bits | QLoRA, 4 bits |",
    "zh": "| 模型 | 家族 | 提示词模板 | LoRA 学习率 | LoRA，16 位 | QLoRA，4 位 |",
}


def table(language: str) -> list[str]:
    """The lines of the table; Chinese readers get the models made for Chinese first."""
    chosen = sorted(MODELS, key=lambda one: not one.chinese) if language == "zh" else MODELS
    lines = [HEADERS[language], "|---|---|---|---|---|---|"]
    for one in chosen:
        rate = f"{usual_rate(one.shape.parameters, adapter=True):.0e}".replace("e-0", "e-")
        cells = [f"`{one.name}`", one.shape.family.title, one.prompt, rate]
        lines.append(f"| {' | '.join([*cells, one.memory('none'), one.memory('nf4')])} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", choices=HEADERS, default="en")
    print("\n".join(table(parser.parse_args().language)))
