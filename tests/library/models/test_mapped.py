"""A weight used where it lies in the system's cache: the same values, the same products."""

import sys

import pytest
import torch

from slimtune.errors import InputError
from slimtune.models import mapped
from slimtune.models.headers import read_tensor, write_header

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture
def infos(tmp_path) -> dict:
    """Three weights that begin and end within pages, of random bits."""
    sizes = {"first": (3,), "second": (70, 61), "third": (2, 5)}
    file = tmp_path / "model.safetensors"
    infos = write_header(file, {name: (torch.bfloat16, size) for name, size in sizes.items()})
    torch.manual_seed(0)
    with file.open("r+b") as handle:
        for info in infos.values():
            handle.seek(info.offset)
            values = torch.randn(info.shape).bfloat16()
            handle.write(values.view(torch.uint8).numpy().tobytes())
    return infos


def test_it_is_what_reading_gives(infos) -> None:
    for info in infos.values():
        mapped.ask_for(info)
        there = mapped.at(info)
        assert there.shape == info.shape and torch.equal(there, read_tensor(info))


def test_what_is_written_to_it_stays_out_of_the_file(infos) -> None:
    before = read_tensor(infos["second"])
    mapped.at(infos["second"]).zero_()
    assert torch.equal(read_tensor(infos["second"]), before)


def test_it_is_there_as_long_as_it_is_used(infos) -> None:
    rows = mapped.at(infos["second"])[3:5]
    assert torch.equal(rows, read_tensor(infos["second"], 3, 5))


def test_a_file_that_became_shorter_is_an_error(infos) -> None:
    last = infos["third"]
    with last.file.open("r+b") as handle:
        handle.truncate(last.offset + 4)
    with pytest.raises(InputError, match="became shorter"):
        mapped.at(last)


def test_an_older_linux_brings_pages_when_they_are_used(infos, monkeypatch) -> None:
    monkeypatch.setattr(mapped, "_POPULATE_READ", 9999)
    assert torch.equal(mapped.at(infos["first"]), read_tensor(infos["first"]))


def test_only_bfloat16_of_a_file_used_as_bfloat16_on_a_linux_cpu(infos, monkeypatch) -> None:
    ones = [(info, torch.bfloat16) for info in infos.values()]
    assert mapped.can_be(ones, CPU)
    assert not mapped.can_be([*ones, (infos["first"], torch.float32)], CPU)
    assert not mapped.can_be(ones, torch.device("cuda"))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not mapped.can_be(ones, CPU)


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_products_do_not_depend_on_where_a_weight_begins(rows) -> None:
    torch.manual_seed(0)
    weight, low = torch.randn(176, 64).bfloat16(), torch.randn(rows, 176).bfloat16()
    x, gradient = torch.randn(rows, 64).bfloat16(), torch.randn(rows, 176).bfloat16()
    wanted = low.addmm(x, weight.T), gradient @ weight
    room = torch.empty(weight.nbytes + 64, dtype=torch.uint8)
    for before in range(0, 64, 2):
        own = room[before : before + weight.nbytes].view(torch.bfloat16).view(weight.shape)
        own.copy_(weight)
        assert torch.equal(low.addmm(x, own.T), wanted[0])
        assert torch.equal(gradient @ own, wanted[1])
