"""Step by step the losses of transformers' own padded Trainer: any family, head, rope, window."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from tiny_models import FAMILIES, SHAPE, tiny_model, tiny_samples
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from slimtune.config import Training
from slimtune.errors import InputError
from slimtune.prompts import IGNORED
from slimtune.training import callbacks, fitting
from slimtune.training.attention import register
from slimtune.training.forward import require_exact
from slimtune.training.trainer import SlimTrainer

LINEARS = ["q_proj", "v_proj", "down_proj"]
ADAPTERS = {
    "plain": {"target_modules": LINEARS},
    "head": {"target_modules": [*LINEARS, "lm_head"]},
    "head, DoRA": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head and embeddings saved": {
        "target_modules": LINEARS,
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "rsLoRA": {"target_modules": LINEARS, "use_rslora": True},
    "DoRA": {"target_modules": LINEARS, "use_dora": True},
    "PiSSA": {"target_modules": LINEARS, "init_lora_weights": "pissa"},
    "OLoRA": {"target_modules": LINEARS, "init_lora_weights": "olora"},
}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "rope_theta": 1e4,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
        "rope_theta": 1e4,
    },
}


def pad(samples: list) -> dict[str, torch.Tensor]:
    width = max(len(s.input_ids) for s in samples)

    def filled(values: list[int], with_: int) -> list[int]:
        return values + [with_] * (width - len(values))

    return {
        "input_ids": torch.tensor([filled(s.input_ids, 0) for s in samples]),
        "attention_mask": torch.tensor([filled([1] * len(s.input_ids), 0) for s in samples]),
        "labels": torch.tensor([filled(s.labels, IGNORED) for s in samples]),
    }


def arguments(
    folder: Path, accumulation: int, learning_rate: float, **changes: object
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=learning_rate,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=3,
        **changes,
    )


def losses(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(base: PreTrainedModel, adapter: dict | None) -> PreTrainedModel | PeftModel:
    if adapter is None:
        return base
    set_seed(0)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **adapter))


def require_equal(
    folder: Path,
    make: Callable[[str], PreTrainedModel],
    adapter: dict | None = None,
    accumulation: int = 1,
    learning_rate: float = 1e-2,
    shared: int = 0,
) -> None:
    samples, args = tiny_samples(18, shared=shared), arguments(folder, accumulation, learning_rate)
    padded = trained(make("sdpa"), adapter)
    reference = losses(Trainer(padded, args, train_dataset=samples, data_collator=pad))
    packed = trained(make(register()), adapter)
    ours = losses(SlimTrainer(packed, args, train_dataset=samples))
    assert len(ours) == len(reference) >= 4
    assert ours == pytest.approx(reference, abs=1e-5)
    assert reference[0] != pytest.approx(reference[-1], abs=1e-3)
    for name, weight in padded.named_parameters():
        torch.testing.assert_close(packed.get_parameter(name), weight, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str, accumulation: int, shared: int) -> None:
    make = partial(tiny_model, family)
    require_equal(tmp_path, make, ADAPTERS["plain"], accumulation, shared=shared)


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        *(("llama", name) for name in ADAPTERS),
        ("llama_tied", "embeddings"),
        *(("qwen3", name) for name in ("DoRA", "head", "embeddings")),
    ],
)
def test_adapters(tmp_path: Path, family: str, adapter: str) -> None:
    require_equal(tmp_path, lambda how: tiny_model(family, how), ADAPTERS[adapter], 3)


@pytest.mark.parametrize(
    ("name", "rate"), [("adamw_8bit", 1e-2), ("adafactor", 1e-2), ("sgd", 1.0)]
)
def test_optimizers(tmp_path: Path, name: str, rate: float) -> None:
    settings = Training(optimizer=name, lr_scheduler="warmup_stable_decay")
    chosen = fitting.optimizer_arguments(settings, steps=10)
    samples, adapter = tiny_samples(18), ADAPTERS["plain"]
    args = arguments(tmp_path, 1, rate, **chosen)
    padded = trained(tiny_model("llama", "sdpa"), adapter)
    reference = losses(Trainer(padded, args, train_dataset=samples, data_collator=pad))
    ours = SlimTrainer(trained(tiny_model(), adapter), args, train_dataset=samples)
    assert losses(ours) == pytest.approx(reference, abs=1e-5)


def test_loraplus_is_pefts_own_on_padded_rows(tmp_path: Path) -> None:
    samples, args = tiny_samples(18), arguments(tmp_path, 1, 2e-3)
    padded = trained(tiny_model("llama", "sdpa"), ADAPTERS["plain"])
    optimizer = create_loraplus_optimizer(
        padded, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=16, betas=(0.9, 0.999), eps=1e-8
    )
    theirs = Trainer(
        padded, args, train_dataset=samples, data_collator=pad, optimizers=(optimizer, None)
    )
    model = trained(tiny_model(), ADAPTERS["plain"])
    ours = SlimTrainer(model, args, train_dataset=samples, loraplus_ratio=16)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)


def test_noise_on_single_rows_is_transformers_own(tmp_path: Path) -> None:
    """Its NEFTune counts with the length of a whole row, which is right for one sample alone."""
    samples, alone = tiny_samples(10), {"per_device_train_batch_size": 1, "seed": 3}
    both = {"output_dir": str(tmp_path), "logging_steps": 1, "save_strategy": "no"}
    both |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 1e-2}
    both |= {"num_train_epochs": 2, "remove_unused_columns": False} | alone
    padded = trained(tiny_model("llama", "sdpa"), ADAPTERS["plain"])
    noisy = TrainingArguments(**both, neftune_noise_alpha=30)
    theirs = losses(Trainer(padded, noisy, train_dataset=samples, data_collator=pad))
    model = trained(tiny_model(), ADAPTERS["plain"])
    with callbacks.neftune(model, 30):
        ours = losses(SlimTrainer(model, TrainingArguments(**both), train_dataset=samples))
    assert ours == pytest.approx(theirs, abs=1e-5)
    quiet = trained(tiny_model(), ADAPTERS["plain"])
    without = losses(SlimTrainer(quiet, TrainingArguments(**both), train_dataset=samples))
    assert ours != pytest.approx(without, abs=1e-3)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3", "llama3.2"])
def test_all_weights(tmp_path: Path, family: str, shared: int) -> None:
    # Slowly: the gradient of a key's bias is rounding alone, and Adam makes full steps of it.
    make = partial(tiny_model, family)
    require_equal(tmp_path, make, accumulation=3, learning_rate=1e-3, shared=shared)


def changed(family: str, how: str, **changes: object) -> PreTrainedModel:
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(1)
    return model_class(config_class(**SHAPE | extra | changes, attn_implementation=how))


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("rope", ROPES)
def test_ropes(tmp_path: Path, rope: str, shared: int) -> None:
    changes = {"rope_parameters": ROPES[rope], "max_position_embeddings": 32}
    make = partial(changed, "llama", **changes)
    require_equal(tmp_path, make, ADAPTERS["plain"], shared=shared)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("window", [3, 8, 15, 4096, None])
def test_sliding_windows(tmp_path: Path, window: int | None, shared: int) -> None:
    make = partial(changed, "mistral", sliding_window=window)
    require_equal(tmp_path, make, ADAPTERS["plain"], shared=shared)


@pytest.mark.parametrize("shared", [0, 12])
def test_windows_in_some_layers_only(tmp_path: Path, shared: int) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    make = partial(changed, "qwen2", **changes)
    require_equal(tmp_path, make, ADAPTERS["plain"], shared=shared)


def test_every_family_here_passes_the_probe() -> None:
    for family in FAMILIES:
        require_exact(tiny_model(family), tiny_samples(2))


@pytest.mark.parametrize(
    ("config_class", "words"),
    [(GraniteConfig, "scales its logits"), (Gemma2Config, "caps its attention scores")],
)
def test_a_family_that_would_train_wrongly_is_refused(config_class: type, words: str) -> None:
    torch.manual_seed(1)
    shape = SHAPE | {"head_dim": 8, "attn_implementation": register()}
    extra = {"logits_scaling": 4.0, "initializer_range": 0.3} if words.startswith("scales") else {}
    model = AutoModelForCausalLM.from_config(config_class(**shape | extra))
    with pytest.raises(InputError, match=words):
        require_exact(model, tiny_samples(2))
