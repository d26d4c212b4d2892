"""Two models are told apart without reading all of them; a record's sums tell every byte."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile import write_record
from safetensors.numpy import save_file
from tiny_folders import write_tiny_llama

from slimtune.models.folders import weights_identity

MIDDLE = 3 << 20  # a place between the first and the last MiB


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = write_tiny_llama(tmp_path / "base")
    weights = {f"layer.{number}": np.full(1 << 19, number, np.float32) for number in range(4)}
    save_file(weights, folder / "model.safetensors")
    return folder


def change(file: Path, place: int, count: int) -> None:
    content = bytearray(file.read_bytes())
    content[place : place + count] = bytes(255 - byte for byte in content[place : place + count])
    file.write_bytes(content)


def test_a_copy_is_the_same_model(folder, tmp_path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert weights_identity(str(copy)) == weights_identity(str(folder))


def test_a_layer_in_the_middle_makes_another_model(folder) -> None:
    before = weights_identity(str(folder))
    change(folder / "model.safetensors", MIDDLE, 1 << 19)
    assert weights_identity(str(folder)) != before


@pytest.mark.parametrize("place", [MIDDLE + 1, MIDDLE + 5000])
def test_with_a_record_every_byte_counts(folder, place) -> None:
    file = folder / "model.safetensors"
    write_record(folder / "run.json", {file.name: file.read_bytes()})
    before = weights_identity(str(folder))
    change(file, place, 1)
    write_record(folder / "run.json", {file.name: file.read_bytes()})
    assert weights_identity(str(folder)) != before


@pytest.mark.parametrize("place", [MIDDLE + 1, MIDDLE + 5000])
def test_every_byte_of_a_file_counts(folder, place) -> None:
    file = (folder / "model.safetensors").rename(folder / "model.gguf")
    before = weights_identity(str(file))
    change(file, place, 1)
    assert weights_identity(str(file)) != before


def test_a_record_of_another_length_is_not_believed(folder) -> None:
    file = folder / "model.safetensors"
    write_record(folder / "run.json", {file.name: b"short"})
    before = weights_identity(str(folder))
    change(file, MIDDLE, 1 << 19)
    assert weights_identity(str(folder)) != before
