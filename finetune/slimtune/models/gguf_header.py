"""The header of a GGUF file, read and believed only as far as it adds up: metadata and tensors.

gguf-py's own reader maps the file and trusts its counts; a few bytes can make it ask for all memory
or run for hours. Here every count, length and offset is held against the size of the file before
anything is read for it, and only the header is read.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from slimtune.artifacts.files import require_fetched
from slimtune.console import near
from slimtune.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# More than any model has: the largest vocabularies have 300,000 tokens and 600,000 merges.
_MOST_ENTRIES, _MOST_ELEMENTS, _MOST_BYTES = 1 << 16, 1 << 21, 128 << 20
_MOST_TEXTS = 1 << 21  # in all arrays: each takes a microsecond or two, and 100 bytes
_LONGEST_NAME, _MOST_DIMENSIONS = 64, 4  # llama.cpp's own limits
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 13, 32  # bytes of a key with its value, of a tensor's entry
_NUMBERS = dict(enumerate(["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"])) | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_TEXT, _ARRAY = 8, 9
_CODES = dict(zip(["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "<u8", "<i8", "<f8"],
                  "BbHhIif?Qqd", strict=True))  # fmt: skip
_READERS = {name: struct.Struct(f"<{code}") for name, code in _CODES.items()}
_LENGTH = _READERS["<u8"]

# A number, a text, an array of numbers, or a list of texts as bytes (a token need not be UTF-8).
Value = int | float | bool | str | np.ndarray | list[bytes]


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `nbytes` at `offset` of the file, in the blocks of `kind`.

    `shape` has the rows first, as in a model folder; the file has them last.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself, and its tensors by name in the order of the file."""

    file: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]

    def get(self, key: str, kind: type | tuple[type, ...], otherwise: Any = None) -> Any:
        """The value of a key, `otherwise` without one; InputError where it is of another kind."""
        value = self.metadata.get(key, otherwise)
        if value is not otherwise and not isinstance(value, kind):
            raise damaged(self.file, f"{key} is a {type(value).__name__}")
        return value

    @property
    def architecture(self) -> str:
        return self.get("general.architecture", str, "")

    @property
    def template(self) -> str | None:
        """The chat template, as jinja source; None without one."""
        return self.get("tokenizer.chat_template", str) or None

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors.values())


def is_gguf(reference: str | Path) -> bool:
    """Whether it is a GGUF file: by its suffix, or by its first bytes (Ollama's have no suffix)."""
    path = Path(reference)
    if path.suffix == ".gguf":
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def require_gguf(file: Path) -> None:
    """Raises InputError if `file` is missing or does not begin like a GGUF file."""
    if not file.is_file():
        raise InputError(
            f"{file}: no such file",
            f"looked for {file.absolute()}",
            "check the path, or run python finetune/convert_to_gguf.py first",
        )
    with file.open("rb") as handle:
        magic = handle.read(4)
    if magic != MAGIC:
        require_fetched(file)
        raise InputError(
            f"{file}: not a GGUF file",
            f"it begins with {magic!r} instead of {MAGIC!r}",
            "give the .gguf file that convert_to_gguf.py wrote",
        )


def read_gguf(file: Path) -> GgufHeader:
    """The header of a file; InputError that says what does not add up.

    Raises it as well for a part of a split model and for types that the gguf package has no name
    for. Takes at most a few hundred MB whatever the file says of itself.
    """
    require_gguf(file)
    with file.open("rb") as handle:
        source = _Source(file, handle)
        source.take(len(MAGIC))
        version = source.number("<u4")
        if version not in VERSIONS:
            why = f"its version is {version}; SlimTune reads {', '.join(map(str, VERSIONS))}"
            raise damaged(file, why)
        tensors = source.count("tensors", _SMALLEST_TENSOR, _MOST_ENTRIES)
        entries = source.count("metadata entries", _SMALLEST_ENTRY, _MOST_ENTRIES)
        metadata = dict(_metadata(source, entries))
        infos = [_tensor_info(source, number) for number in range(tensors)]
        found = _placed(source, infos, metadata)
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise InputError(
            f"{near(file)}: one of {parts} parts of a model",
            "its tensors are spread over several files",
            "join them first: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf",
        )
    return GgufHeader(file, metadata, found)


class _Source:
    """Bytes taken one after another; whoever asks for more than there are is told so."""

    def __init__(self, file: Path, handle: BinaryIO) -> None:
        self.file, self.handle = file, handle
        self.size = file.stat().st_size
        self.at, self.texts = 0, 0

    def take(self, length: int) -> bytes:
        self.at += length
        if self.at > self.size:
            raise damaged(self.file, f"it ends at {self.size:,} bytes, inside its header")
        if self.at > _MOST_BYTES:
            raise damaged(self.file, f"its header has more than {_MOST_BYTES >> 20} MB")
        return self.handle.read(length)

    def number(self, kind: str) -> int | float | bool:
        reader = _READERS[kind]
        return reader.unpack(self.take(reader.size))[0]

    def count(self, what: str, smallest: int, most: int) -> int:
        """How many follow: no more than bytes are left for, each of at least `smallest`."""
        found = self.number("<u8")
        if found > most or found * smallest > self.size - self.at:
            raise damaged(self.file, f"it speaks of {found:,} {what}")
        return found

    def text(self) -> bytes:
        return self.take(*_LENGTH.unpack(self.take(8)))

    def value(self) -> Value:
        kind = self.number("<u4")
        if kind == _TEXT:
            return self.text().decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array()
        return self.number(self._known(kind))

    def _array(self) -> np.ndarray | list[bytes]:
        kind = self.number("<u4")
        numbers = None if kind == _TEXT else np.dtype(self._known(kind))
        smallest = 8 if numbers is None else numbers.itemsize
        length = self.count("elements of an array", smallest, _MOST_ELEMENTS)
        if numbers is not None:
            return np.frombuffer(self.take(length * numbers.itemsize), numbers)
        self.texts += length
        if self.texts > _MOST_TEXTS:
            raise damaged(self.file, f"its arrays have more than {_MOST_TEXTS:,} texts")
        return [self.text() for _ in range(length)]

    def _known(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise damaged(self.file, f"a value of the unknown type {kind}")
        return _NUMBERS[kind]


def _metadata(source: _Source, entries: int) -> Iterator[tuple[str, Value]]:
    seen: set[str] = set()
    for _ in range(entries):
        key = source.text().decode("utf-8", "replace")
        if key in seen:
            raise damaged(source.file, f"it says {key!r} twice")
        seen.add(key)
        yield key, source.value()


def _tensor_info(source: _Source, number: int) -> GgufTensor:
    """A tensor's entry, its offset counted from where the data begin."""
    raw = source.text()
    name = raw.decode("utf-8", "replace")
    if not raw or len(raw) >= _LONGEST_NAME or not name.isprintable():
        raise damaged(source.file, f"tensor {number} has the name {name[:_LONGEST_NAME]!r}")
    dimensions = source.number("<u4")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise damaged(source.file, f"{name} has {dimensions} dimensions")
    sizes = [source.number("<u8") for _ in range(dimensions)]
    kind = _kind(source, name, source.number("<u4"))
    block, size = GGML_QUANT_SIZES[kind]
    if not all(sizes) or sizes[0] % block:
        why = f"{name} has the shape {sizes}, its type {kind.name} comes in blocks of {block}"
        raise damaged(source.file, why)
    nbytes = math.prod(sizes) // block * size
    return GgufTensor(name, tuple(reversed(sizes)), kind, source.number("<u8"), nbytes)


def _kind(source: _Source, name: str, number: int) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        raise InputError(
            f"{near(source.file)}: {name} is of the type number {number}",
            "the gguf package has no name for it: it is newer, or was removed from llama.cpp",
            "take the model in another type, such as Q4_K_M, Q8_0 or F16",
        ) from None


def _placed(
    source: _Source, infos: list[GgufTensor], metadata: dict[str, Value]
) -> dict[str, GgufTensor]:
    """Tensors with their place in the file: one after another, as llama.cpp asks for."""
    file = source.file
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise damaged(file, f"its alignment is {alignment!r}")
    start = _rounded_up(source.at, alignment)
    expected, found = 0, {}
    for one in infos:
        if one.name in found:
            raise damaged(file, f"it holds {one.name} twice")
        if one.offset != expected:
            why = f"{one.name} lies at {one.offset:,}, after those before it would be {expected:,}"
            raise damaged(file, why)
        if start + one.offset + one.nbytes > source.size:
            why = f"{one.name} ends at {start + one.offset + one.nbytes:,}, the file at "
            raise damaged(file, f"{why}{source.size:,} bytes")
        expected += _rounded_up(one.nbytes, alignment)
        found[one.name] = replace(one, offset=start + one.offset)
    return found


def _rounded_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def damaged(file: Path, why: str) -> InputError:
    return InputError(
        f"{near(file)}: damaged, or no GGUF that can be read",
        why,
        "take the file from its source again, and compare its size and SHA-256 with theirs",
    )
