"""What an error in a weight costs: against autograd on the whole model, and in real KL."""

import gguf
import numpy as np
import pytest
import torch
from tiny_folders import write_tiny_llama
from transformers import AutoModelForCausalLM

from slimtune.config import Config
from slimtune.errors import InputError
from slimtune.export import feedback, importance, sensitivity
from slimtune.export.imatrix import (
    Feedback,
    Sensitivity,
    read_imatrix,
    squares_of,
    write_imatrix,
)
from slimtune.export.plan import as_source
from slimtune.export.preflight import preflight
from slimtune.inference.stack import Stack, batches_of

ROWS = [[1, 5, 9, 12, 33], [1, 7, 8], [1, 100, 101, 102, 103, 9, 9]]
TOKENS = sum(map(len, ROWS))


def labels(count: int, vocabulary: int) -> torch.Tensor:
    """In place of those that are drawn, so that a reference can have the same."""
    return (torch.arange(count) * 37 + 11) % vocabulary


@pytest.fixture
def known_labels(monkeypatch):
    def gradient(logits, generator):
        chances = logits.softmax(-1)
        where = torch.arange(len(logits)), labels(*logits.shape)
        chances[where] -= 1
        return chances

    monkeypatch.setattr(sensitivity, "_drawn_gradient", gradient)


def squared_gradients(folder) -> dict[str, torch.Tensor]:
    """Σ over rows of text of (dL/dW)², by autograd, for one token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    found = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in matrices.items()}
    for row in ROWS:
        logits = model(torch.tensor([row])).logits[0]
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels(*logits.shape), reduction="sum").backward()
        for name, p in matrices.items():
            found[name] += p.grad.double().square() / TOKENS
    return found


def measured(folder, scratch) -> dict:
    return sensitivity.fisher_sums(Stack.of(folder), batches_of(ROWS), scratch, 0)[1]


def test_sums_are_those_of_the_squared_gradients(narrow_untied, tmp_path, known_labels):
    expected, found = squared_gradients(narrow_untied), measured(narrow_untied, tmp_path)
    assert found.keys() == expected.keys() and len(found) == 16
    for name, squares in expected.items():
        assert found[name][0].numpy() == pytest.approx(squares.sum(1).numpy(), rel=1e-3, abs=1e-9)
        assert found[name][1].numpy() == pytest.approx(squares.sum(0).numpy(), rel=1e-3, abs=1e-9)


def test_a_tied_matrix_costs_what_it_costs_at_either_end(narrow, tmp_path, known_labels):
    found = measured(narrow, tmp_path)["model.embed_tokens.weight"]
    squares = squared_gradients(narrow)["model.embed_tokens.weight"]
    # The gradient of the sum holds products of both ends on top, of either sign.
    assert float(found[0].sum()) == pytest.approx(float(squares.sum()), rel=0.3)
    assert float(found[0].sum()) == pytest.approx(float(found[1].sum()), rel=1e-4)


def test_moments_weigh_each_token_by_its_gradient():
    dice = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 5, 512, generator=dice)
    gradients = torch.randn(2, 5, 7, generator=dice)
    found = sensitivity.moments(inputs, gradients.square().sum(-1))
    whole = sum(
        (torch.outer(gradient, entered)).T @ torch.outer(gradient, entered)
        for text, back in zip(inputs, gradients, strict=True)
        for entered, gradient in zip(text, back, strict=True)
    )
    assert torch.allclose(found[0], whole[:256, :256], rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[1], whole[256:, 256:], rtol=1e-4, atol=1e-4)
    assert sensitivity.moments(torch.ones(3, 72), torch.ones(3)).numel() == 0


def test_every_matrix_that_can_be_quantised_has_its_feedback(narrow, tmp_path, known_labels):
    """FFN 72: rows of ffn_down can only be F16. The tied embedding has both its ends."""
    plan, source = preflight(narrow, "F32"), as_source(narrow)
    costs = importance.observe(source, plan, batches_of(ROWS), tmp_path, sensitive=True)[2]
    without = {name for name, cost in costs.items() if cost.feedback is None}
    assert without == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    for cost in (costs[name] for name in costs.keys() - without):
        kept = cost.feedback.kept
        assert kept.shape == cost.columns.shape and (kept > 0).all() and (kept <= 1).all()
        assert kept.min() < 0.9  # a layer of a small model and a few words: columns are alike
        assert (cost.left <= cost.columns).all()


def test_rows_kept_back_are_measured_and_not_made_up_by(narrow, tmp_path, known_labels):
    """The sums and the corrections are those of the first rows."""
    plan, source, others = preflight(narrow, "F32"), as_source(narrow), [[1, 40, 41, 42, 9, 200]]

    def observed(rows, kept_back=()):
        batches, others = batches_of(rows), batches_of(kept_back)
        found = importance.observe(
            source, plan, batches, tmp_path, sensitive=True, kept_back=others
        )
        return found

    sums, counts, costs = observed(ROWS, others)
    of_first = observed(ROWS)
    assert counts == of_first[1] and sums.keys() == of_first[0].keys()
    for name, total in sums.items():
        assert total == pytest.approx(of_first[0][name], rel=1e-4)
    once = (
        costs["blk.0.attn_q.weight"].feedback.kept
        / of_first[2]["blk.0.attn_q.weight"].feedback.kept
    )
    told = once[0]  # one for the whole model
    assert told > 1.05  # a few words say little of others
    for name, cost in costs.items():
        alone = of_first[2][name]
        assert cost.rows == pytest.approx(alone.rows, rel=1e-3, abs=1e-9)
        assert cost.columns == pytest.approx(alone.columns, rel=1e-3, abs=1e-9)
        assert cost.rounding == pytest.approx(alone.rounding, rel=1e-3, abs=1e-9)
        if cost.feedback is None:
            continue
        before = alone.feedback
        assert squares_of(cost.feedback) == pytest.approx(squares_of(before), abs=2e-3)
        times = cost.feedback.kept / before.kept
        assert times == pytest.approx(np.full_like(times, told), rel=1e-3)


@pytest.mark.parametrize("validation", [6, 0], ids=["validation rows", "none"])
def test_the_loss_is_told_by_rows_that_nothing_was_made_from(
    narrow, tmp_path, monkeypatch, validation
):
    """By half as many validation rows; where there are none, by every fourth of the others."""
    train, others = tmp_path / "a_train.jsonl", tmp_path / "a_validation.jsonl"
    rows = {train: [[1, 3 + n] for n in range(8)], others: [[2, 3 + n] for n in range(validation)]}
    for file, found in rows.items():
        file.write_text("{}\n" * len(found), encoding="utf-8")
    monkeypatch.setattr(importance, "_encoded", lambda _, __, file, count, ___: rows[file][:count])
    seen, usual = [], importance.fisher_sums

    def watched(stack, batches, folder, seed, kept_back):
        seen.extend(
            [row for one in part for row in one.ids.tolist()] for part in (batches, kept_back)
        )
        return usual(stack, batches, folder, seed, kept_back)

    monkeypatch.setattr(importance, "fisher_sums", watched)
    training = Config().training.model_copy(update={"train_data": train})
    config = Config().model_copy(update={"training": training})
    output = tmp_path / "i.gguf"
    importance.measure_importance(
        as_source(narrow), preflight(narrow, "F32"), output, config, sensitive=True
    )
    if validation:
        assert seen == [rows[train], rows[others][:4]]
    else:
        assert seen == [[one for one in rows[train] if one[1] not in (6, 10)], [[1, 6], [1, 10]]]


def test_labels_are_drawn_from_the_model(narrow_untied):
    logits = torch.randn(2000, 7)[:1].repeat(4000, 1)
    gradient = sensitivity._drawn_gradient(logits.clone(), torch.Generator().manual_seed(0))
    assert gradient.sum(-1).abs().max() < 1e-5
    drawn = (gradient < 0).float().mean(0)
    assert drawn.numpy() == pytest.approx(logits[0].softmax(-1).numpy(), abs=0.03)


@pytest.mark.parametrize("block", [0, 1])
def test_rounding_costs_what_rounded_inputs_cost(llama, tmp_path, block):
    """Layer 1's up_proj is given inputs as llama.cpp rounds them: KL against half the figure."""
    size = sensitivity.BLOCKS[block]
    rows = torch.randint(3, 400, (40, 24), generator=torch.Generator().manual_seed(0)).tolist()
    plan, source = preflight(llama, "F32"), as_source(llama)
    found = importance.observe(source, plan, batches_of(rows), tmp_path, sensitive=True)[2]
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()

    def rounded(_, inputs):
        parts = inputs[0].unflatten(-1, (-1, size))
        scale = parts.abs().amax(-1, keepdim=True) / 127
        return ((parts / scale).round() * scale).flatten(-2)

    with torch.inference_mode():
        before = model(torch.tensor(rows)).logits.double().log_softmax(-1)
        model.model.layers[1].mlp.up_proj.register_forward_pre_hook(rounded)
        after = model(torch.tensor(rows)).logits.double().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean().item()
    expected = 0.5 * float(found["blk.1.ffn_up.weight"].rounding[block])
    assert expected == pytest.approx(kl, rel=0.6)


def test_half_the_product_is_the_divergence(narrow_untied, tmp_path):
    """An error of a known size in one matrix: KL by the whole model against ½ Σ F D²."""
    plan, source = preflight(narrow_untied, "F32"), as_source(narrow_untied)
    rows = torch.randint(3, 400, (40, 24), generator=torch.Generator().manual_seed(0)).tolist()
    found = importance.observe(source, plan, batches_of(rows), tmp_path, sensitive=True)[2]
    model = AutoModelForCausalLM.from_pretrained(narrow_untied, dtype=torch.float32).eval()
    ids = torch.tensor(rows)
    for name, place in (("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj"), OUTPUT):
        weight = model.get_submodule(place).weight
        error = 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            before = model(ids).logits.log_softmax(-1)
            weight += error
            after = model(ids).logits.log_softmax(-1)
            weight -= error
        kl = (before.exp() * (before - after)).sum(-1).mean().item()
        cost: Sensitivity = found[name]
        expected = 0.5 * cost.rows @ error.numpy() ** 2 @ cost.columns / cost.rows.sum()
        assert expected == pytest.approx(kl, rel=0.25), name


OUTPUT = ("output.weight", "lm_head")


def test_rows_lie_as_in_the_file(narrow_untied, tmp_path, known_labels):
    """llama.cpp has the rows of a head in another order: so has their cost."""
    plan, source = preflight(narrow_untied, "F32"), as_source(narrow_untied)
    costs = importance.observe(source, plan, batches_of(ROWS), tmp_path / "s", sensitive=True)[2]
    name = "model.layers.0.self_attn.q_proj.weight"
    found = measured(narrow_untied, tmp_path / "t")[name][0].float().numpy()
    half = 8  # heads of 16
    order = [i // 2 + half * (i % 2) for i in range(2 * half)]
    assert costs["blk.0.attn_q.weight"].rows.reshape(4, 16) == pytest.approx(
        found.reshape(4, 16)[:, order]
    )


def test_it_lies_beside_the_importance_and_llama_cpps_readers_pass_it_over(tmp_path):
    name, sums = "blk.0.ffn_up.weight", np.array([1.0, 4.0, 9.0], np.float32)
    cost = Sensitivity(np.array([1.0, 2.0], np.float32), np.array([0.5, 1.0, 1.5], np.float32))
    write_imatrix(tmp_path / "i.gguf", {name: sums}, {name: 10}, "rows", 5, {name: cost})
    found = read_imatrix(tmp_path / "i.gguf")
    assert found.weights[name] == pytest.approx(sums / 10)
    assert found.sensitivity[name].rows.tolist() == [1.0, 2.0]
    assert found.sensitivity[name].columns.tolist() == [0.5, 1.0, 1.5]
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "i.gguf").tensors}
    assert {one for one in names if one.endswith((".in_sum2", ".counts"))} == {
        f"{name}.in_sum2",
        f"{name}.counts",
    }


def test_feedback_lies_there_too_and_is_read_when_a_matrix_is_written(tmp_path):
    name, file = "blk.0.ffn_up.weight", tmp_path / "i.gguf"
    ones, triangles = np.ones(64, np.float32), np.random.default_rng(0).normal(size=(1, 64, 64))
    kept, pairs = feedback.packed(np.triu(triangles))
    cost = Sensitivity(ones, ones, feedback=Feedback(kept, lambda: pairs))
    write_imatrix(file, {name: ones}, {name: 10}, "rows", 5, {name: cost})
    found = read_imatrix(file).sensitivity[name]
    assert found.left == pytest.approx(triangles[0].diagonal())
    squares = squares_of(found.feedback)
    assert squares[0] == pytest.approx(np.triu(triangles[0], 1), rel=1e-3)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(pairs.tobytes(), np.full_like(pairs, np.nan).tobytes()))
    with pytest.raises(InputError, match="not finite"):
        squares_of(read_imatrix(file).sensitivity[name].feedback)


def test_feedback_of_another_width_is_refused(tmp_path):
    name, file = "blk.0.ffn_up.weight", tmp_path / "i.gguf"
    ones = np.ones(64, np.float32)
    kept, pairs = feedback.packed(np.eye(32)[None])
    cost = Sensitivity(ones, ones, feedback=Feedback(kept, lambda: pairs))
    write_imatrix(file, {name: ones}, {name: 10}, "rows", 5, {name: cost})
    with pytest.raises(InputError, match="not that of 64 columns"):
        read_imatrix(file)


@pytest.fixture(scope="module")
def narrow_untied(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("untied"), hidden=64)
