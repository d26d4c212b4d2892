"""The tensors of a GGUF as safetensors, some rows at a time: dequantised, named and in order.

Quantised values are exact as float16 but for the last of its 11 digits, and four times nearer to it
than to bfloat16; a file of bfloat16 or float32 matrices stays what it is.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from slimtune.console import near
from slimtune.errors import InputError
from slimtune.export.architecture import FACTORS, Architecture
from slimtune.export.tensors import row_order
from slimtune.models.gguf_header import GgufHeader, GgufTensor, damaged
from slimtune.models.model_shape import gguf_tensor_name
from slimtune.models.weights import CheckpointWriter

_CHUNK_BYTES = 4 << 20  # of float32
_PLAIN = (Type.F32, Type.F16, Type.BF16)


@dataclass(frozen=True)
class Loss:
    """What quantising cost, as far as the file tells: bits a weight, and tensors of each type."""

    bits: float
    types: dict[str, int]

    @property
    def quantised(self) -> bool:
        return any(Type[name] not in _PLAIN for name in self.types)

    def words(self) -> str:
        """`5.37 bits a weight (210 Q4_1, 61 F32, 1 Q8_0)`."""
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        return f"{self.bits:.2f} bits a weight ({types})"


def loss_of(header: GgufHeader) -> Loss:
    tensors = header.tensors.values()
    bits = 8 * sum(one.nbytes for one in tensors) / max(1, header.parameters)
    types = Counter(one.kind.name for one in tensors)
    return Loss(bits, dict(types.most_common()))


def require_tensors(header: GgufHeader, architecture: Architecture) -> dict[str, str]:
    """GGUF name -> Hugging Face name of every tensor, in the order of the file.

    Raises InputError for types that the gguf package cannot dequantise, and where the file has
    other tensors, or other shapes, than its metadata promise.
    """
    for tensor in header.tensors.values():
        _require_dequantisable(header, tensor)
    shape = architecture.shape
    wanted = {gguf_tensor_name(shape, name): (name, size) for name, size in shape.tensors.items()}
    missing = [name for name in wanted if name not in header.tensors]
    if missing:
        raise damaged(header.file, f"{len(missing)} tensors are missing, first {missing[0]}")
    found = {}
    for name, tensor in header.tensors.items():
        if name == FACTORS:
            continue
        if name not in wanted:
            raise InputError(
                f"{near(header.file)}: holds {name}",
                f"a {shape.family.title} as SlimTune knows it has no such tensor",
                "begin with the original model's folder",
            )
        ours, size = wanted[name]
        if tensor.shape != size:
            raise damaged(header.file, f"{name} has the shape {tensor.shape}, {size} was promised")
        found[name] = ours
    return found


def write_weights(
    header: GgufHeader, architecture: Architecture, names: dict[str, str], folder: Path
) -> str:
    """Every tensor of `names` into `folder`; the type of their numbers, in torch's words."""
    import torch  # the only one here that needs it; a refusal comes without

    kind = number_type(header)
    dtype = getattr(torch, kind)
    spec = {ours: (dtype, header.tensors[name].shape) for name, ours in names.items()}
    with CheckpointWriter(folder, spec) as writer:
        for name, ours in names.items():
            for start, rows in _ordered(header, architecture, name):
                values = torch.from_numpy(rows).to(dtype)
                if not torch.isfinite(values).all():
                    raise damaged(header.file, f"{name} holds numbers that no {kind} is")
                writer.write(ours, values, start)
    return kind


def number_type(header: GgufHeader) -> str:
    """float32 or bfloat16 where matrices are, else float16."""
    kinds = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) > 1}
    if Type.F32 in kinds:
        return "float32"
    return "bfloat16" if kinds == {Type.BF16} else "float16"


def read_tensor_rows(header: GgufHeader, name: str, multiple: int = 1) -> Iterator[np.ndarray]:
    """A tensor in float32, some rows at a time, a multiple of `multiple`; a vector as one row."""
    tensor = header.tensors[name]
    columns = tensor.shape[-1]
    block, size = GGML_QUANT_SIZES[tensor.kind]
    row_bytes = columns // block * size
    rows = tensor.elements // columns
    step = max(1, _CHUNK_BYTES // (4 * columns * multiple)) * multiple
    with header.file.open("rb") as handle:
        handle.seek(tensor.offset)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            data = np.frombuffer(handle.read(count * row_bytes), np.uint8)
            if data.size != count * row_bytes:
                raise damaged(header.file, f"it ended while {name} was read")
            with np.errstate(all="ignore"):  # what is not finite is refused by who writes it
                values = gguf.quants.dequantize(data.reshape(count, row_bytes), tensor.kind)
            yield values


def _ordered(
    header: GgufHeader, architecture: Architecture, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) as Hugging Face has them: rows of q and k at their old places."""
    order, vector = row_order(architecture, name), len(header.tensors[name].shape) == 1
    head = 1 if order is None else len(order)
    start = 0
    for rows in read_tensor_rows(header, name, 1 if vector else head):
        if vector:
            rows = rows.reshape(-1)
        if order is not None:
            heads = rows.reshape(-1, head, *rows.shape[1:])
            rows = heads[:, np.argsort(order)].reshape(rows.shape)
        yield start, np.array(rows, np.float32)
        start += len(rows)


def _require_dequantisable(header: GgufHeader, tensor: GgufTensor) -> None:
    block, size = GGML_QUANT_SIZES[tensor.kind]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), tensor.kind)
    except NotImplementedError:
        raise InputError(
            f"{near(header.file)}: {tensor.name} is {tensor.kind.name}",
            "the gguf package, which unpacks for transformers too, has no way back from this type",
            "take the model in another type, such as Q4_K_M, Q8_0 or F16",
        ) from None
