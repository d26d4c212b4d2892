"""Memory of its own for what is kept from the forward pass to the backward pass of a layer.

    one = places.keep(hidden)   a copy, in memory that an earlier batch has used
    one.give_back()             what was kept is no longer needed

malloc's heap then holds what lives as long as a layer computes, and little else. With what is kept
among it, freed blocks leave holes that nothing fits into (`models.memory`). To give each block back
to the system instead costs a fault for each page each time it is used: a fifth of what a streamed
model computes.
"""

import mmap

import torch


class Places:
    """As many as were ever needed at once of a type, each as large as the largest that it held."""

    def __init__(self) -> None:
        self._free: dict[torch.dtype, list[torch.Tensor]] = {}

    def keep(self, one: torch.Tensor) -> "Kept":
        """A copy, to be read until it is given back; on a GPU the tensor itself."""
        if one.device.type != "cpu":
            return Kept(one, None, self)
        free = self._free.setdefault(one.dtype, [])
        room = free.pop() if free else None
        if room is None or len(room) < one.nbytes:
            room = torch.frombuffer(mmap.mmap(-1, max(1, one.nbytes)), dtype=torch.uint8)
        data = room[: one.nbytes].view(one.dtype).view(one.shape)
        return Kept(data.copy_(one), room, self)

    def take_back(self, room: torch.Tensor, dtype: torch.dtype) -> None:
        """What was kept in `room` may be overwritten by what is of that type."""
        self._free[dtype].append(room)


class Kept:
    """`data` until `give_back`."""

    def __init__(self, data: torch.Tensor, room: torch.Tensor | None, places: Places) -> None:
        self._data: torch.Tensor | None = data
        self._room, self._places = room, places

    @property
    def data(self) -> torch.Tensor:
        """Raises RuntimeError once it was given back, as autograd does of what it keeps."""
        if self._data is None:
            raise RuntimeError("a streamed layer's backward pass was asked for a second time")
        return self._data

    def give_back(self) -> None:
        if self._room is not None:
            self._places.take_back(self._room, self._data.dtype)
        self._data = self._room = None
