"""Checkpoints agree with the safetensors library, row by row; broken folders are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from slimtune.errors import InputError, ResourceError
from slimtune.models.weights import Checkpoint, CheckpointWriter, copy_companions

TENSORS = {
    "odd": torch.arange(3, dtype=torch.bfloat16),
    "matrix": torch.randn(7, 5),
    "half": torch.randn(4, 2).half(),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
}


def spec_of(tensors):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write(folder, tensors, **options):
    with CheckpointWriter(folder, spec_of(tensors), **options) as writer:
        for name, tensor in reversed(tensors.items()):
            writer.write(name, tensor)
    return Checkpoint(folder)


def test_reads_what_the_safetensors_library_wrote(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert checkpoint.shapes == {n: tuple(t.shape) for n, t in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert checkpoint.dtype(name) == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)
    assert torch.equal(checkpoint.read("matrix", 2, 5), TENSORS["matrix"][2:5])
    assert checkpoint.bytes == sum(t.numel() * t.element_size() for t in TENSORS.values())


@pytest.mark.parametrize("shard_bytes", [1, 100, 10**9])
def test_the_safetensors_library_reads_what_we_wrote(tmp_path, shard_bytes):
    checkpoint = write(tmp_path, TENSORS, shard_bytes=shard_bytes)
    found = {}
    for file in tmp_path.glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (shard_bytes < 10**9)
    if index.exists():
        assert json.loads(index.read_text())["weight_map"] == checkpoint.files


def test_rows_arrive_in_any_order_and_shard_names_can_be_kept(tmp_path):
    files = {"a": "x.safetensors", "b": "y.safetensors"}
    a, b = torch.randn(6, 3), torch.randn(2)
    with CheckpointWriter(tmp_path, spec_of({"a": a, "b": b}), files=files) as writer:
        writer.write("a", a[4:], start=4)
        writer.write("b", b)
        writer.write("a", a[:4])
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.files == files
    assert torch.equal(checkpoint.read("a"), a)


def test_a_forgotten_or_misshapen_tensor_never_passes(tmp_path):
    spec = {"a": (torch.float32, (4, 2))}
    writer = CheckpointWriter(tmp_path, spec)
    writer.write("a", torch.zeros(3, 2))
    with pytest.raises(ValueError, match="'a'"):
        writer.close()
    for rows, start in (
        (torch.zeros(4, 3), 0),
        (torch.zeros(4, 2).half(), 0),
        (torch.zeros(2, 2), 3),
    ):
        with pytest.raises(ValueError, match="^a:"):
            writer.write("a", rows, start)


def test_no_room_on_the_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ResourceError, match="32 B needed, 10 B free"):
        CheckpointWriter(tmp_path, {"a": (torch.float32, (4, 2))})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("tied", "expected"), [(True, 12), (False, 24)])
def test_a_tied_output_layer_counts_once(tmp_path, tied, expected):
    weights = {"model.embed_tokens.weight": torch.ones(4, 3), "lm_head.weight": torch.ones(4, 3)}
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    assert write(tmp_path, weights).parameters == expected


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, TENSORS, shard_bytes=1)
    lost = sorted(tmp_path.glob("*.safetensors"))[2]
    lost.unlink()
    with pytest.raises(InputError, match=lost.name):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("named", ["../outside.safetensors", "..\\a.safetensors", None])
def test_an_index_names_files_of_its_folder_only(tmp_path, named):
    write(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "model").mkdir()
    named = str(tmp_path / "outside.safetensors") if named is None else named
    index = tmp_path / "model/model.safetensors.index.json"
    for weight_map in ({"a": named}, [named], named):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match="only speak of files inside|no weight_map"):
            Checkpoint(tmp_path / "model")


def test_shards_may_be_links_as_in_the_cache_of_the_hub(tmp_path):
    write(tmp_path / "model", TENSORS, shard_bytes=1)
    for number, shard in enumerate((tmp_path / "model").glob("*.safetensors")):
        shard.rename(tmp_path / str(number))
        shard.symlink_to(tmp_path / str(number))
    assert Checkpoint(tmp_path / "model").tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("kept", [4, 60, -1])
def test_a_cut_off_file_is_found_from_its_header(tmp_path, kept):
    write(tmp_path, TENSORS)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="damaged"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no weights"),
        ({"pytorch_model.bin": ""}, "pickled"),
        ({"adapter_config.json": '{"base_model_name_or_path": "BASE"}'}, "LoRA adapter"),
        ({"model.gguf": ""}, "model.gguf"),
    ],
)
def test_other_folders_are_recognised(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        Checkpoint(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Checkpoint(tmp_path / "nowhere")


def test_quantised_weights_are_refused_by_dtype_and_by_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path, {"w": torch.zeros(2, 2)}).require_full_precision("merge")
    with pytest.raises(InputError, match="U8"):
        write(tmp_path, {"w": torch.zeros(2, 2, dtype=torch.uint8)}).require_full_precision("merge")
    (tmp_path / "config.json").write_text('{"quantization_config": {}}')
    with pytest.raises(InputError, match="merge"):
        write(tmp_path, {"w": torch.zeros(2, 2)}).require_full_precision("merge")


def test_companions_are_everything_but_weights_and_the_run_record(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    kept = {"config.json", "generation_config.json", "tokenizer.model", "chat_template.jinja"}
    left = {"model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "run.json"}
    for name in kept | left | {".hidden"}:
        (source / name).write_text(name)
    assert set(copy_companions(source, target, without={"config.json"})) == kept - {"config.json"}
    assert {file.name for file in target.iterdir()} == kept - {"config.json"}
    assert copy_companions(source, target, only={"config.json"}) == ["config.json"]


def test_an_index_left_over_from_an_older_save_is_ignored_as_transformers_does(tmp_path):
    write(tmp_path, TENSORS, shard_bytes=1)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert set(Checkpoint(tmp_path).files.values()) == {"model.safetensors"}
