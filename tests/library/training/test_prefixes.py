"""Beginnings in common: who shares, where each token stands then, and when nothing is shared."""

import pytest
import torch
from tiny_models import tiny_model, tiny_samples

from slimtune.prompts import IGNORED
from slimtune.training import attention, batches, forward, losses, prefixes
from slimtune.training.batches import Sample, collate
from slimtune.training.teachers import hidden_states

SYSTEM = list(range(10, 20))


def sample(*own: int, before: list[int] = SYSTEM, learned: int = 1) -> Sample:
    ids = [*before, *own]
    return Sample(ids, [IGNORED] * (len(ids) - learned) + ids[len(ids) - learned :])


def shown(samples: list[Sample]) -> list[list[int]]:
    """The tokens of each piece, as the model reads them."""
    batch = collate(samples)
    tokens = batch["input_ids"][0, batch["kept"]].tolist()
    sizes = [n for p in batch["pieces"] for n in (p if isinstance(p, tuple) else (p,))]
    return [part.tolist() for part in torch.tensor(tokens).split(sizes)]


def test_a_shared_beginning_stands_once_before_what_follows_it() -> None:
    rows = [sample(1, 2, 3), sample(4, 5), sample(6, 7, 8, 9)]
    assert collate(rows)["pieces"] == [(10, 3, 2, 4)]
    assert shown(rows) == [SYSTEM, [1, 2, 3], [4, 5], [6, 7, 8, 9]]


def test_rows_of_several_tasks_form_groups_and_lone_ones_stay_whole() -> None:
    other = [x + 20 for x in SYSTEM]
    rows = [sample(1, 2), sample(3, 4, before=other), sample(5, 6), sample(7, 8, before=[])]
    rows.append(sample(9, 1, before=other))
    assert sorted(map(str, collate(rows)["pieces"])) == ["(10, 2, 2)", "(10, 2, 2)", "2"]


def test_each_token_is_found_again_where_it_stands() -> None:
    batch = collate(tiny_samples(9, shared=12))
    tokens, counted = (batch[name][0] for name in ("input_ids", "position_ids"))
    kept, places = batch["kept"], batch["places"]
    assert len(kept) < len(tokens)
    assert torch.equal(tokens[kept][places], tokens)
    assert torch.equal(counted[kept][places], counted)


@pytest.mark.parametrize("learned", [1, 3, 12])
def test_what_is_learned_and_the_token_before_it_are_each_rows_own(learned: int) -> None:
    rows = [sample(1, 2, learned=learned), sample(1, 2, learned=learned), sample(1, 3)]
    batch = collate(rows)
    if learned == 12:  # the first two are learned from the first token on
        assert "pieces" not in batch
        return
    for length in (n for piece in batch["pieces"] for n in piece[1:]):
        assert length > learned or length == 2
    read = forward.supervised(batch)
    assert len(set(batch["places"][read].tolist())) == len(read)


@pytest.mark.parametrize(
    "rows",
    [
        [sample(1, 2)],
        [sample(1, 2, before=SYSTEM[:5]), sample(3, 4, before=SYSTEM[:5])],
        [sample(1, 2), sample(3, 4, before=SYSTEM[::-1])],
    ],
    ids=["one row", "too short", "nothing in common"],
)
def test_a_batch_without_a_beginning_in_common_stays_as_it_is(rows: list[Sample]) -> None:
    assert "pieces" not in collate(rows)
    assert "pieces" not in collate([sample(1, 2), sample(3, 4)], share=False)


def test_fewer_tokens_go_through_the_model_and_the_loss_is_the_same() -> None:
    model, samples = tiny_model(), tiny_samples(9, shared=12)
    seen: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))

    def loss(share: bool) -> float:
        batch = collate(samples, share=share)
        read = forward.supervised(batch)
        targets = batch["labels"][0, read + 1]
        parts = forward.loss_parts(
            model, batch, read, lambda logits, rows: losses.cross_entropy(logits, targets[rows])
        )
        return parts[0].item()

    assert loss(True) == pytest.approx(loss(False), abs=1e-4)
    assert seen[0] == seen[1] - 12 * 4  # six of nine rows share in two groups of four and two


def test_the_teachers_pass_shares_too() -> None:
    model, samples = tiny_model(), tiny_samples(9, shared=12)
    ours, read = hidden_states(model, collate(samples))
    whole, same = hidden_states(model, collate(samples, share=False))
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(read, same)


def test_an_attention_that_knows_no_beginnings_gets_whole_rows() -> None:
    batch = collate(tiny_samples(9, shared=12))
    read = forward.supervised(batch)
    ready, places = batches.ready(batch, read, shares=attention.shares_beginnings("sdpa"))
    assert ready["lengths"] == batch["lengths"] and places is read


def test_a_model_with_dropout_draws_for_each_row() -> None:
    assert not prefixes.draws(tiny_model())
    model = tiny_model()
    model.config.attention_dropout = 0.1
    assert prefixes.draws(model)
    model = tiny_model()
    model.noise = torch.nn.Dropout(0.1)
    assert prefixes.draws(model)


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_in_bfloat16_a_beginning_gets_the_gradient_of_all_its_rows(heads: int) -> None:
    """Against float32, within what bfloat16 rounds: attention alone, rows on one beginning, keys
    and values with as many heads as the queries or fewer."""
    torch.manual_seed(2)
    pieces = [(12, 3, 5, 4), 7]
    tokens = 12 + 3 + 5 + 4 + 7
    parts = [torch.randn(1, n, tokens, 8).bfloat16() for n in (4, heads, heads)]
    wanted = torch.randn(1, tokens, 4, 8)
    found = []
    for kind in (torch.float32, torch.bfloat16):
        q, k, v = (part.to(kind).requires_grad_() for part in parts)
        output, _ = attention.per_sample_attention(None, q, k, v, None, lengths=pieces)
        output.backward(wanted.to(kind))
        found.append([output, q.grad, k.grad, v.grad])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=2e-2)
