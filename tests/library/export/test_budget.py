"""The least loss for bytes and the fewest bytes for a loss, against trying everything."""

import random
from itertools import product

import pytest
from gguf import GGMLQuantizationType as Type

from slimtune.export import budget
from slimtune.export.budget import Frontier, Option, total_bytes, total_loss, worthwhile

KINDS = [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q6_K, Type.F16]


def some(seed: int) -> dict[str, list[Option]]:
    """Five matrices of different sizes, one much larger; losses fall with bytes, mostly."""
    dice = random.Random(seed)
    found = {}
    for name, blocks in zip("abcde", (1, 2, 3, 3, 40), strict=True):
        losses = [dice.random() * 4.0**-place for place in range(5)]
        sizes = [32 * blocks * (place + 2) for place in range(5)]
        found[name] = [Option(*one) for one in zip(KINDS, sizes, losses, strict=True)]
    return found


def every(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    chosen = [dict(zip(options, one, strict=True)) for one in product(*options.values())]
    return [(total_bytes(one), total_loss(one)) for one in chosen]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_is_better(seed):
    options = some(seed)
    known = every(options)
    sizes = sorted({size for size, _ in known})
    frontier = Frontier(options)
    for most in sizes[:: len(sizes) // 20] + [sizes[-1] + 1]:
        found = frontier.within_bytes(most)
        assert total_bytes(found) <= most
        assert total_loss(found) == pytest.approx(min(loss for size, loss in known if size <= most))
        within = Frontier(options, most).within_bytes(most)
        assert total_loss(within) == pytest.approx(total_loss(found))
        cheapest = frontier.within_loss(total_loss(found) * (1 + 1e-9))
        fewest = min(size for size, loss in known if loss <= total_loss(found) * (1 + 1e-9))
        assert total_bytes(cheapest) == fewest


def test_below_the_smallest_there_is_nothing_and_above_the_largest_no_more():
    options = some(0)
    frontier = Frontier(options)
    least = total_bytes(frontier.smallest)
    assert frontier.within_bytes(least - 1) is None
    assert Frontier(options, least - 1).within_bytes(least - 1) is None
    assert frontier.within_bytes(least) == frontier.smallest
    assert frontier.within_bytes(1 << 40) == frontier.best
    assert frontier.within_loss(total_loss(frontier.best) * 0.99) is None


def test_sizes_too_many_to_tell_apart_never_exceed_the_budget(monkeypatch):
    monkeypatch.setattr(budget, "_PLACES", 50)
    options = some(1)
    known = every(options)
    for most in (3500, 4500, 6000):
        found = Frontier(options, most).within_bytes(most)
        assert total_bytes(found) <= most
        assert total_loss(found) < 2 * min(loss for size, loss in known if size <= most)


def test_a_type_that_is_larger_and_no_better_is_never_taken():
    options = [Option(Type.Q4_0, 10, 0.2), Option(Type.Q4_1, 12, 0.3), Option(Type.Q4_K, 10, 0.1)]
    assert worthwhile(options) == [options[2]]
