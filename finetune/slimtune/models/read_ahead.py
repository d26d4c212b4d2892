"""Weights that come from their file when they are needed: one part at a time, the next read ahead.

    room = max(2 * largest layer, output layer)

A part is a decoder layer, or the output layer. While one computes, a thread reads the next into the
other half of the room, which is all the memory that the weights of a model of any depth take. Parts
that can be used where they lie in the system's cache (`mapped`) are read ahead into that instead:
then the room is the cache's, and the open part is all of it that counts as this process's.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import nn

from slimtune.models import mapped
from slimtune.models.headers import TensorInfo, read_into, read_tensor
from slimtune.models.weights import CHUNK_BYTES, all_finite, not_finite

Part = Sequence[tuple[str, TensorInfo, nn.Parameter]]

_LINE = 64  # bytes: where each weight begins, as where torch's own do: kernels differ by it


def placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of any shape in the memory of one number."""
    return torch.zeros((), dtype=dtype, device=device).expand(tuple(shape))


class ReadAhead:
    """The parts of a model, `layers` and last its output layer, opened one at a time.

    The parameters of the open part hold its weights, in their own type; those of all others are
    placeholders. `folder` is named in errors. On a GPU the parts stay in the RAM beside it as far
    as `kept` bytes go, and are copied from there.
    """

    def __init__(
        self, folder: Path, layers: Sequence[Part], output: Part, device: torch.device, kept: int
    ) -> None:
        self._folder, self._parts = folder, [*layers, output]
        self._sizes = [_room(part) for part in self._parts]
        self._half = max(self._sizes[:-1])
        self._copied = _Copied(device, kept) if device.type == "cuda" else None
        weights = ((info, one.dtype) for part in self._parts for _, info, one in part)
        self._mapped = mapped.can_be(weights, device)
        self._size = room_of(self._sizes)
        self._room = torch.empty(
            0 if self._mapped else self._size, dtype=torch.uint8, device=device
        )
        self._held: dict[int, int] = {}  # which parts are in the room, and where each begins
        self._sound: set[int] = set()
        self._open: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._coming: Future | None = None
        self.bytes_read = 0

    @property
    def output(self) -> int:
        """The number of the output layer."""
        return len(self._parts) - 1

    @property
    def held(self) -> list[int]:
        """The parts that are in memory, the one that is being read among them."""
        return sorted(self._held)

    def open(self, index: int, then: int | None = None) -> None:
        """Have the weights of part `index`, and begin to read those of `then`.

        Raises InputError for a file that became shorter, and for a weight with NaN or infinity.
        """
        if self._coming is not None:
            coming, self._coming = self._coming, None
            coming.result()
        if index != self._open:
            self._close()
            if index not in self._held:
                self._read(index, self._place(index, beside=None))
            for parameter, view in self._views(index):
                parameter.data = view
            self._open = index
            self._require_finite(index)
        if then is not None and then not in self._held:
            start = self._place(then, beside=index)
            if start is not None:
                self._coming = self._thread.submit(self._read, then, start)

    def _close(self) -> None:
        """No parameter holds a weight any longer; a graph that kept one says so when it is used."""
        if self._open is None:
            return
        for _, _, parameter in self._parts[self._open]:
            shape, dtype, device = parameter.shape, parameter.dtype, parameter.device
            parameter.data = placeholder(shape, dtype, device)
            torch.autograd.graph.increment_version(parameter)
        if self._copied:
            self._copied.computed()
        self._open = None

    def _place(self, index: int, beside: int | None) -> int | None:
        """Where part `index` can lie `beside` another that stays; None where it cannot. What lies
        there is given up."""
        size = self._sizes[index]
        stays = self._span(beside) if beside is not None else range(0)
        for start in (0, self._half):
            if start + size <= self._size and not _meet(range(start, start + size), stays):
                mine = range(start, start + size)
                left = [other for other in self._held if not _meet(self._span(other), mine)]
                self._held = {other: self._held[other] for other in left} | {index: start}
                return start
        return None

    def _span(self, index: int) -> range:
        start = self._held[index]
        return range(start, start + self._sizes[index])

    def _read(self, index: int, start: int) -> None:
        room = self._room[start : start + self._sizes[index]]
        if self._copied:
            self._copied.fill(room, index, partial(self._fill, index))
        else:
            self._fill(index, room)

    def _fill(self, index: int, room: torch.Tensor) -> None:
        part = self._parts[index]
        self.bytes_read += sum(info.nbytes for _, info, _ in part)
        if self._mapped:
            for _, info, _ in part:
                mapped.ask_for(info)
            return
        for (_, info, _), view in zip(part, _views_in(part, room), strict=True):
            _read_as(view, info)

    def _views(self, index: int) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        part = self._parts[index]
        if self._mapped:
            yield from ((parameter, mapped.at(info)) for _, info, parameter in part)
            return
        room = self._room[self._held[index] :]
        for (_, _, parameter), view in zip(part, _views_in(part, room), strict=True):
            yield parameter, view

    def _require_finite(self, index: int) -> None:
        """InputError by name, at a part's first time."""
        if index in self._sound:
            return
        for name, _, parameter in self._parts[index]:
            if not all_finite(parameter.data):
                raise not_finite(self._folder, name)
        self._sound.add(index)


def room_of(sizes: Sequence[int]) -> int:
    """Bytes for the layers and last the output layer of `sizes`, one open and one read ahead."""
    *layers, output = sizes
    return max(2 * max(layers), output)


def _room(part: Part) -> int:
    return sum(_lines(one.numel() * one.itemsize) for _, _, one in part)


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _views_in(part: Part, room: torch.Tensor) -> Iterator[torch.Tensor]:
    start = 0
    for _, _, parameter in part:
        size = parameter.numel() * parameter.itemsize
        yield room[start : start + size].view(parameter.dtype).view(parameter.shape)
        start += _lines(size)


def _read_as(view: torch.Tensor, info: TensorInfo) -> None:
    """A tensor of a file into `view`, on the CPU, in the type that this has."""
    if info.dtype == view.dtype:
        read_into(info, view)
        return
    step = max(1, CHUNK_BYTES // max(1, info.row_bytes))
    for start in range(0, info.shape[0], step):
        stop = min(start + step, info.shape[0])
        view[start:stop] = read_tensor(info, start, stop)


class _Copied:
    """Parts on their way to a GPU, beside what computes there; those read once stay in pinned RAM
    as far as `kept` bytes go."""

    def __init__(self, device: torch.device, kept: int) -> None:
        self._stream = torch.cuda.Stream(device)
        self._left, self._hosts = kept, {}
        self._passing = torch.empty(0, dtype=torch.uint8)
        self._done: torch.cuda.Event | None = None

    def computed(self) -> None:
        """What was asked of the GPU up to now may still read the part that is closed."""
        self._done = torch.cuda.current_stream().record_event()

    def fill(self, room: torch.Tensor, index: int, read: Callable[[torch.Tensor], None]) -> None:
        host = self._hosts.get(index)
        if host is None:
            host = self._host(index, len(room))
            read(host)
        with torch.cuda.stream(self._stream):
            if self._done is not None:
                self._stream.wait_event(self._done)
            room.copy_(host, non_blocking=True)
        self._stream.synchronize()

    def _host(self, index: int, size: int) -> torch.Tensor:
        if size <= self._left:
            self._left -= size
            self._hosts[index] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            return self._hosts[index]
        if len(self._passing) < size:
            self._passing = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._passing[:size]
