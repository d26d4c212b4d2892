"""GGUF files as others make them: changed metadata, and a store such as Ollama keeps."""

import hashlib
import json
import shutil
from pathlib import Path

import gguf

WEIGHTS = "application/vnd.ollama.image.model"


def put_into_ollama(store: Path, name: str, file: Path) -> Path:
    """`file` as `ollama pull MODEL:TAG` leaves it in `store`, which is returned."""
    model, _, tag = name.partition(":")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, store / "blobs" / f"sha256-{digest}")
    manifest = store / "manifests/registry.ollama.ai/library" / model / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": WEIGHTS, "digest": f"sha256:{digest}", "size": file.stat().st_size}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    return store


def changed(file: Path, target: Path, *, without: tuple[str, ...] = (), **entries: object) -> Path:
    """A copy of a GGUF with other metadata: `tokenizer__ggml__pre="smollm"` sets that key.

    Of tensors, those named in `without` are left out.
    """
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    new = {name.replace("__", "."): value for name, value in entries.items()}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in new:
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), kind, inner)
    for key, value in new.items():
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        if tensor.name not in without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
