"""KL divergence and agreement equal PyTorch's own, whoever the original and the other are."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_folders import write_tiny_llama
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from slimtune.export.gguf_writer import write_gguf
from slimtune.inference.answers import in_order
from slimtune.inference.distributions import (
    Distributions,
    RowPlan,
    kept_rows,
    kl_divergence,
    rounded,
    sample_of,
)
from slimtune.inference.engines import LlamaCppEngine
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.token_losses import token_losses


@pytest.mark.parametrize("apart", [0.001, 0.01, 0.1, 1.0])
def test_the_divergence_is_pytorchs_whatever_is_rounded(apart):
    """On a vocabulary of 50,000, between models that differ by 1e-6 to 0.4 nats."""
    torch.manual_seed(1)
    first = 3 * torch.randn(50_000, dtype=torch.float64)
    other = (first + apart * torch.randn(50_000, dtype=torch.float64)).log_softmax(-1)
    first = first.log_softmax(-1)
    wanted = float(F.kl_div(other, first, log_target=True, reduction="sum"))
    found = kl_divergence(rounded(first.numpy()), other.numpy())
    assert found == pytest.approx(wanted, rel=1e-2, abs=1e-7)


@pytest.mark.parametrize(
    ("noise", "divergence", "same_top"),
    [(0.03, 0.000423457349, 39), (0.1, 0.00470389634, 37), (0.5, 0.116603119, 33)],
)
def test_it_is_what_llama_perplexity_prints(noise, divergence, same_top, tmp_path):
    """Recorded from the two functions of llama-perplexity b10488 that --kl-divergence calls.

    On F16, Q8_0 and Q4_K_M of SmolLM2-135M, 585 tokens, they print 0.005303 and 0.065003 where
    ours are 0.005291 and 0.065115 and float64 gives 0.005291 and 0.065115; the first choices are
    the same at 553 and 499 tokens for both.
    """
    first = 3 * np.random.default_rng(7).standard_normal((40, 1000))
    other = first + noise * np.random.default_rng(8).standard_normal(first.shape)
    plans = [RowPlan(tmp_path / "row", None, range(40)), RowPlan(None, tmp_path / "row", range(40))]
    for plan, logits in zip(plans, (first, other), strict=True):
        one = plan.open()
        for logs in torch.tensor(logits.astype(np.float32)).double().log_softmax(-1).numpy():
            one.add(logs)
        one.close()
    assert np.mean(one.divergences) == pytest.approx(divergence, rel=1e-2)
    assert sum(one.agreements) == same_top


def test_a_model_does_not_diverge_from_itself():
    logs = torch.randn(1000, dtype=torch.float64).log_softmax(-1).numpy()
    assert 0 <= kl_divergence(rounded(logs), logs) < 1e-7


def test_what_one_excludes_is_a_large_number_and_no_infinity():
    certain = np.array([0.0, -np.inf])
    assert kl_divergence(rounded(np.log([0.5, 0.5])), certain) > 1000


def test_damaged_weights_are_not_taken_for_the_same_model(tmp_path):
    whole, broken = np.log(np.full(8, 1 / 8)), np.full(8, np.nan)
    assert np.isnan(kl_divergence(rounded(whole), broken))
    for kept, read, compared in ((whole, broken, 2), (broken, whole, 0)):
        original = RowPlan(tmp_path / "row", None, range(2)).open()
        original.add(kept)
        original.add(kept)
        original.close()
        other = RowPlan(None, tmp_path / "row", range(2)).open()
        other.add(read)
        other.add(read)
        assert len(other.divergences) == compared and 0 not in other.divergences


def test_all_rows_are_compared_or_as_many_as_fit():
    tokens = [5, 0, 7, 100, 3]
    assert sample_of(tokens, 10, most=20 * 115) == {0, 2, 3, 4}
    some = sample_of([4] * 100, 10, most=20 * 40)
    assert len(some) == 10 and some != set(range(10))
    assert some == sample_of([4] * 100, 10, most=20 * 40)
    assert sample_of([1000, 4], 10, most=20 * 40) == {1}  # one that can never fit is passed over


@pytest.fixture(scope="module")
def examples(prompts) -> list[dict[str, list[int]]]:
    """Rows with one or two supervised spans."""
    chance = random.Random(2)
    rows = []
    for prompt in (one for one in prompts if len(one) > 4):
        start = chance.randint(4, len(prompt) - 1)
        labels = [-100] * start + prompt[start:]
        if start > 5:
            labels[2:4] = prompt[2:4]
        rows.append({"input_ids": prompt, "labels": labels})
    return rows


def changed(model):
    """The same model with other weights here and there."""
    other = copy.deepcopy(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return other


def expected(first, other, example) -> tuple[float, int, int]:
    """Σ KL, agreements and tokens of a row, from whole logits."""
    with torch.no_grad():
        logs = [m(torch.tensor([example["input_ids"]])).logits[0].double() for m in (first, other)]
    places = [t - 1 for t, label in enumerate(example["labels"]) if label != -100]
    ours, theirs = (one[places].log_softmax(-1) for one in logs)
    apart = float(F.kl_div(theirs, ours, log_target=True, reduction="sum"))
    return apart, int((ours.argmax(-1) == theirs.argmax(-1)).sum()), len(places)


def losses_of(model, examples, plan, budget=120):
    found = in_order(token_losses(model, examples, token_budget=budget, distributions=plan))
    return [one.total for one in found]


def test_two_models_token_by_token(model, examples, tmp_path):
    rows, other = frozenset(range(len(examples) - 1)), changed(model)
    kept = Distributions(rows, keep=tmp_path / "kept")
    assert kept.missing() == rows
    before = losses_of(model, examples, kept)
    assert not kept.missing() and kept_rows(tmp_path / "kept") == sorted(rows)
    assert all(loss.compared == 0 for loss in before)
    found = losses_of(other, examples, Distributions(rows, original=tmp_path / "kept"), 300)
    for row in rows:
        apart, agreed, tokens = expected(model, other, examples[row])
        assert (found[row].agreed, found[row].compared) == (agreed, tokens)
        assert found[row].divergence == pytest.approx(apart, rel=1e-3)
    assert 0 < sum(loss.agreed for loss in found) < sum(loss.compared for loss in found)
    assert found[-1].tokens and not found[-1].compared  # it was not among the rows


def test_losses_are_the_same_whether_others_listen_or_not(model, examples, tmp_path):
    plan = Distributions(frozenset(range(len(examples))), keep=tmp_path)
    assert losses_of(model, examples, plan) == losses_of(model, examples, None)


def test_another_vocabulary_and_missing_rows_are_not_compared(model, examples, tmp_path):
    kept = Distributions(frozenset({0, 1}), keep=tmp_path)
    losses_of(model, examples, kept)
    (tmp_path / "0.u16").write_bytes((tmp_path / "0.u16").read_bytes()[:-2])
    whole = np.fromfile(tmp_path / "1.u16", "<u2").reshape(-1, model.config.vocab_size)
    whole[:, :-1].tofile(tmp_path / "1.u16")
    found = losses_of(model, examples, Distributions(frozenset({0, 1, 2}), original=tmp_path))
    assert [loss.compared for loss in found[:3]] == [0, 0, 0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two models of one vocabulary."""
    parent = tmp_path_factory.mktemp("models")
    first = write_tiny_llama(parent / "first", hidden=64)
    other = changed(LlamaForCausalLM.from_pretrained(first, dtype=torch.float32))
    other.save_pretrained(parent / "other")
    for file in first.glob("tokenizer*"):
        (parent / "other" / file.name).write_bytes(file.read_bytes())
    return [first, parent / "other"]


@pytest.mark.parametrize("first_is", ["folder", "gguf"])
@pytest.mark.parametrize("other_is", ["folder", "gguf"])
def test_folders_and_ggufs_are_compared_alike(folders, tmp_path, first_is, other_is):
    """The logits are llama.cpp's own: its F32 file of a folder is that folder to 1 %."""
    chance = random.Random(5)
    examples = []
    for _ in range(5):
        ids = [1, *chance.choices(range(300), k=chance.randint(12, 24))]
        examples.append({"input_ids": ids, "labels": [-100] * 4 + ids[4:7] + [-100] + ids[8:]})
    rows = frozenset(range(5))
    plans = [Distributions(rows, keep=tmp_path / "kept")]
    plans += [Distributions(rows, original=tmp_path / "kept")]
    models = [LlamaForCausalLM.from_pretrained(one, dtype=torch.float32) for one in folders]
    for kind, folder, model, plan in zip((first_is, other_is), folders, models, plans, strict=True):
        if kind == "folder":
            found = losses_of(model, examples, plan)
            continue
        write_gguf(folder, tmp_path / "model.gguf", "F32")
        with LlamaCpp(tmp_path / "model.gguf", context=64, slots=2, threads=1) as gguf:
            engine = LlamaCppEngine(gguf, None, 2, exact=True)
            found = in_order(engine.losses(examples, frozenset(), plan))
        (tmp_path / "model.gguf").unlink()
    apart, agreed, tokens = zip(*(expected(*models, one) for one in examples), strict=True)
    assert sum(one.divergence for one in found) == pytest.approx(sum(apart), rel=1e-2)
    assert [one.compared for one in found] == list(tokens)
    assert abs(sum(one.agreed for one in found) - sum(agreed)) <= 1
