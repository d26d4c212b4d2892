"""Every choice handed to peft has its effect, trains, and is saved for the base on disk."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_samples
from transformers import LlamaForCausalLM

from slimtune.config import Lora, Training
from slimtune.errors import QualityError, SettingsError
from slimtune.models import loading
from slimtune.models.compute import Compute
from slimtune.models.merging import merge_adapter
from slimtune.training import attention, initialisation, lora
from slimtune.training.fitting import fit

SETTINGS = Training(epochs=3, batch_size=4, learning_rate=1e-2, evaluations_per_epoch=1)
IDS = torch.arange(5, 25)[None]
CPU = Compute.choose("cpu")


def layer(model: PeftModel, name: str = "q_proj") -> torch.nn.Module:
    return next(module for path, module in model.named_modules() if path.endswith(f".{name}"))


def trained(folder: Path, settings: Lora, family: str = "llama") -> tuple[PeftModel, dict, list]:
    """A model after twelve steps, its start, and its validation losses."""
    model = lora.attach(tiny_model(family), settings, seed=0)
    start = initialisation.start_of(model, settings)
    samples = tiny_samples(16)
    curve = fit(
        model, samples, samples[:8], SETTINGS, folder / "checkpoints",
        loraplus_ratio=settings.loraplus_ratio,
    )  # fmt: skip
    return model.eval(), start, [loss for _, loss in curve.validation]


CHOICES = {
    "rslora": Lora(rank=4, rslora=True),
    "dora": Lora(rank=4, dora=True),
    "loraplus": Lora(rank=4, loraplus_ratio=8),
    "pissa": Lora(rank=4, initialisation="pissa"),
    "olora": Lora(rank=4, initialisation="olora"),
    "pissa_rslora": Lora(rank=4, initialisation="pissa", rslora=True),
    "pissa_dora": Lora(rank=4, initialisation="pissa", dora=True),
    "modules_to_save": Lora(rank=4, modules_to_save=["embed_tokens", "lm_head"]),
    "lm_head": Lora(rank=4, target_modules=["q_proj", "lm_head"]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_trains_and_is_right_on_the_base_as_it_was(name: str, tmp_path: Path) -> None:
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    model, start, losses = trained(tmp_path, CHOICES[name])
    assert losses[-1] < losses[0] - 0.05
    lora.save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"), start)
    fresh = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            fresh(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_another_start_is_merged_without_knowing_of_it(name: str, tmp_path: Path) -> None:
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    model, start, _ = trained(tmp_path, CHOICES[name])
    moved = layer(model).base_layer.weight
    assert not torch.allclose(moved, base.model.layers[0].self_attn.q_proj.weight)
    lora.save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"), start)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 8
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    plain = lora.attach(tiny_model(), Lora(rank=16, alpha=8), seed=0)
    stable = lora.attach(tiny_model(), Lora(rank=16, alpha=8, rslora=True), seed=0)
    assert layer(plain).scaling["default"] == 8 / 16
    assert layer(stable).scaling["default"] == 8 / math.sqrt(16)


def test_dora_begins_with_the_lengths_of_the_weights_and_learns_them(tmp_path: Path) -> None:
    model = lora.attach(tiny_model(), Lora(dora=True), seed=0)
    magnitude = layer(model).lora_magnitude_vector["default"].weight
    lengths = tiny_model().model.layers[0].self_attn.q_proj.weight.norm(dim=1)
    torch.testing.assert_close(magnitude, lengths)
    assert magnitude.requires_grad


def test_dropout_acts_in_training_only() -> None:
    model = lora.attach(tiny_model(), Lora(dropout=0.5), seed=0)
    assert layer(model).lora_dropout["default"].p == 0.5


def test_modules_to_save_are_trained_whole(tmp_path: Path) -> None:
    before = tiny_model().model.embed_tokens.weight
    model, *_ = trained(tmp_path, Lora(modules_to_save=["embed_tokens"]))
    saved = model.get_base_model().model.embed_tokens.modules_to_save["default"].weight
    assert saved.requires_grad and not torch.allclose(saved, before)


def test_loftq_starts_nearer_to_the_base_than_rounding_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    compute = Compute(CPU.device, CPU.dtype, "nf4", attention.register())
    exact = tiny_model().eval()
    distances = []
    for start in ("default", "loftq"):
        base = loading.load_model(folder, compute)
        model = lora.attach(
            base, Lora(rank=16, initialisation=start), seed=0, quantized=True
        ).eval()
        with torch.no_grad():
            distances.append((model(IDS).logits - exact(IDS).logits).norm().item())
    assert distances[1] < 0.7 * distances[0]


def test_what_loftq_starts_with_is_not_saved(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    base = loading.load_model(folder, CPU.keeping("nf4"))
    settings = Lora(rank=4, initialisation="loftq")
    model = lora.attach(base, settings, seed=0, quantized=True)
    start = initialisation.start_of(model, settings)
    lora.save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"), start)
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    for name in [one for one in saved if ".lora_A." in one]:
        assert saved[name].abs().max() > 0
        assert (saved[name.replace("_A", "_B")] @ saved[name]).abs().max() < 1e-6


def test_loftq_leaves_alone_what_is_not_quantised(tmp_path: Path) -> None:
    """An output layer is kept whole: with A and B both zero its adapter would never learn."""
    tiny_model().save_pretrained(tmp_path)
    base = loading.load_model(tmp_path, CPU.keeping("nf4"))
    settings = Lora(rank=4, initialisation="loftq", target_modules=["q_proj", "lm_head"])
    model = lora.attach(base, settings, seed=0, quantized=True)
    assert layer(model, "lm_head").lora_A["default"].weight.abs().max() > 0
    assert layer(model, "q_proj").lora_B["default"].weight.abs().max() > 0


def test_a_quantised_module_cannot_be_trained_whole(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    for saved, words in (("embed_tokens", ""), ("q_proj", "q_proj is quantised")):
        base = loading.load_model(tmp_path, CPU.keeping("nf4"))
        settings = Lora(modules_to_save=[saved], target_modules=["v_proj"])
        if not words:
            lora.attach(base, settings, seed=0, quantized=True)
            continue
        with pytest.raises(SettingsError, match=words):
            lora.attach(base, settings, seed=0, quantized=True)


def test_a_start_that_would_move_a_tied_embedding_is_refused() -> None:
    settings = Lora(initialisation="pissa", target_modules=["q_proj", "lm_head"])
    with pytest.raises(SettingsError, match="tied lm_head"):
        lora.attach(tiny_model("llama_tied"), settings, seed=0)


@pytest.mark.parametrize(
    ("settings", "quantized", "words"),
    [
        (Lora(initialisation="loftq"), False, "loftq without quantisation"),
        (Lora(initialisation="pissa"), True, "pissa on a quantised base"),
        (Lora(initialisation="loftq", dora=True), True, "loftq with DoRA"),
        (Lora(modules_to_save=["embed_token"]), False, "did you mean embed_tokens?"),
        (Lora(target_modules=["q_porj"]), False, "did you mean q_proj?"),
        (Lora(target_modules=[]), False, "empty"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: Lora, quantized: bool, words: str) -> None:
    with pytest.raises(SettingsError, match=words.replace("?", r"\?")):
        lora.attach(tiny_model(), settings, seed=0, quantized=quantized)


def saved_on_disk(tmp_path: Path) -> tuple[Path, Path, torch.Tensor]:
    """A base, a trained adapter of it, and what they answered together."""
    tiny_model().save_pretrained(tmp_path / "base")
    model, *_ = trained(tmp_path, Lora(rank=4))
    lora.save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    return (
        tmp_path / "base",
        tmp_path / "adapter",
        lora.next_token_log_probabilities(model, IDS[0].tolist()),
    )


def test_the_adapter_is_loaded_back_and_moves_the_base(tmp_path: Path) -> None:
    base, adapter, answers = saved_on_disk(tmp_path)
    assert lora.require_effect(adapter, str(base), IDS[0].tolist(), answers, CPU) > 0.01
    with pytest.raises(QualityError, match="not the trained one"):
        lora.require_effect(adapter, str(base), IDS[0].tolist(), answers + 3, CPU)


def test_an_adapter_that_moves_nothing_when_loaded_is_refused(tmp_path: Path) -> None:
    base, adapter, answers = saved_on_disk(tmp_path)
    file = adapter / "adapter_model.safetensors"
    weights = {n: w * (".lora_A." in n) for n, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(QualityError, match="changes nothing"):
        lora.require_effect(adapter, str(base), IDS[0].tolist(), answers, CPU)
