"""Blank tokens after a batch: only where they help, unseen by the samples, teaching nothing."""

import torch
from tiny_models import tiny_samples

from slimtune.machine import onednn
from slimtune.training.batches import collate, padded

CPU = torch.device("cpu")


def test_a_batch_keeps_its_samples_and_gets_one_more_of_blanks() -> None:
    batch = collate(tiny_samples(3))
    tokens = batch["input_ids"].shape[1]
    with onednn.through_onednn():
        full = padded(batch, CPU)
    assert full["input_ids"].shape == full["position_ids"].shape == (1, sum(full["lengths"]))
    assert sum(full["lengths"]) % 64 == 0 and full["lengths"][:-1] == batch["lengths"]
    assert torch.equal(full["input_ids"][:, :tokens], batch["input_ids"])
    assert torch.equal(full["position_ids"][:, :tokens], batch["position_ids"])
    assert not full["position_ids"][:, tokens:].any()  # a dynamic rope looks at the largest
    assert full["labels"] is batch["labels"] and full["indices"] is batch["indices"]


def test_nothing_is_filled_on_a_gpu_nor_where_the_usual_library_multiplies() -> None:
    batch = collate(tiny_samples(3))
    assert padded(batch, CPU) is batch
    with onednn.through_onednn():
        assert padded(batch, torch.device("cuda")) is batch
