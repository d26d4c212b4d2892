"""What is kept for a backward pass lies in memory of its own, used again by the next batch."""

import pytest
import torch

from slimtune.models.kept import Places


def test_it_is_a_copy() -> None:
    one = torch.arange(6.0).view(2, 3)
    kept = Places().keep(one)
    one.zero_()
    assert torch.equal(kept.data, torch.arange(6.0).view(2, 3))


def test_what_is_given_back_is_used_again_where_it_is_large_enough() -> None:
    places = Places()
    first = places.keep(torch.ones(8))
    where = first.data.data_ptr()
    first.give_back()
    smaller = places.keep(torch.ones(2, 3))
    assert smaller.data.data_ptr() == where and smaller.data.shape == (2, 3)
    beside = places.keep(torch.full((4,), 5.0))
    assert beside.data.data_ptr() != where and smaller.data.eq(1).all()
    smaller.give_back()
    larger = places.keep(torch.full((9,), 7.0))
    assert larger.data.eq(7).all() and beside.data.eq(5).all()
    assert places.keep(torch.empty(0)).data.numel() == 0


def test_each_type_has_places_of_its_own() -> None:
    """Hidden states of 4 bytes and products of 2: else all became as large as the larger."""
    places = Places()
    wide = places.keep(torch.ones(8))
    where = wide.data.data_ptr()
    wide.give_back()
    half = places.keep(torch.ones(8).bfloat16())
    assert half.data.data_ptr() != where and places.keep(torch.ones(8)).data.data_ptr() == where


def test_it_is_not_read_after_it_was_given_back() -> None:
    kept = Places().keep(torch.ones(3))
    kept.give_back()
    with pytest.raises(RuntimeError, match="second time"):
        _ = kept.data
