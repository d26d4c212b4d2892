"""Training on 4-bit weights: gradients stay right after an evaluation, on any CPU."""

import torch
from tiny_folders import write_tiny_llama

from slimtune.config import Lora
from slimtune.models import loading
from slimtune.training import lora


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_after_an_evaluation_are_those_before(tmp_path) -> None:
    """bitsandbytes repacks the weights of a model in evaluation mode on CPUs with AVX512-BF16,
    and what computes with them has no backward pass: layers below would stop learning."""
    folder = write_tiny_llama(tmp_path, hidden=64)
    base = loading.load(folder, device="cpu", quantization="nf4")
    model = lora.attach(base, Lora(), seed=1, quantized=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 40)[None]
    before = gradients(model, ids)
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    after = gradients(model, ids)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, msg=name)
