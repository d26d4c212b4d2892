"""Training on 4-bit and 8-bit weights: right gradients, also after an evaluation, on any CPU."""

from pathlib import Path

import pytest
import torch
from tiny_folders import write_tiny_llama
from tiny_models import tiny_model, tiny_samples

from slimtune.config import Lora, Training
from slimtune.models import loading
from slimtune.models.compute import Compute
from slimtune.training import attention, lora
from slimtune.training.fitting import fit


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def adapted(folder: Path, quantization: str) -> torch.nn.Module:
    """An adapter that already does something, on a base kept in `quantization`."""
    base = loading.load_model(folder, Compute.choose("cpu", quantization=quantization))
    model = lora.attach(base, Lora(), seed=1, quantized=quantization != "none")
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_after_an_evaluation_are_those_before(tmp_path, quantization) -> None:
    """bitsandbytes repacks the weights of a model in evaluation mode on CPUs with AVX512-BF16,
    and what computes with them has no backward pass: layers below would stop learning."""
    model = adapted(write_tiny_llama(tmp_path, hidden=64), quantization)
    ids = torch.arange(3, 40)[None]
    before = gradients(model, ids)
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    after = gradients(model, ids)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, msg=name)


@pytest.mark.parametrize(("quantization", "likeness"), [("nf4", 0.95), ("int8", 0.997)])
def test_gradients_point_where_those_of_the_exact_base_do(tmp_path, quantization, likeness) -> None:
    folder, ids = tmp_path / "base", torch.arange(3, 40)[None]
    tiny_model().save_pretrained(folder)
    exact = gradients(adapted(folder, "none"), ids)
    rounded = gradients(adapted(folder, quantization), ids)
    assert exact.keys() == rounded.keys()
    ours, theirs = (torch.cat([g[n].flatten() for n in exact]) for g in (rounded, exact))
    found = torch.cosine_similarity(ours, theirs, dim=0).item()
    assert likeness < found < 0.999999, found


def test_a_quantised_base_trains_as_far_as_the_exact_one(tmp_path, record_property) -> None:
    write_tiny_llama(tmp_path / "base", hidden=64)
    settings = Training(epochs=4, batch_size=4, learning_rate=1e-2)
    samples = tiny_samples(12)
    last = {}
    for quantization in ("none", "nf4", "int8"):
        base = loading.load_model(
            tmp_path / "base",
            Compute(torch.device("cpu"), torch.float32, quantization, attention.register()),
        )
        model = lora.attach(base, Lora(), seed=1, quantized=quantization != "none")
        curve = fit(model, samples, samples, settings, tmp_path / quantization)
        last[quantization] = curve.validation[-1][1]
        record_property(f"validation loss, {quantization}", curve.summary())
        assert last[quantization] < curve.validation[0][1] - 0.3
    assert last["nf4"] == pytest.approx(last["none"], abs=0.2)
    assert last["int8"] == pytest.approx(last["none"], abs=0.05)
