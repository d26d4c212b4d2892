"""What an adapter does to the rows of one weight: low-rank matrices, or trained rows.

W (out x in) becomes W + B @ A * scale, A (rank x in) and B (out x rank); an embedding W (tokens x
dim) is changed by the transpose, or has trained rows put in its place. DoRA (arXiv:2402.09353)
gives each row of the sum the norm it learned: m * V / |V| with V = W + B @ A * scale. Sums are made
in float32; the caller rounds once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimtune.models.headers import TensorInfo, read_float32, read_tensor

if TYPE_CHECKING:  # imported where a tensor is made: reading a folder's headers needs none
    import torch

RowsShape = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """The two low-rank matrices of one weight; `transposed` for an embedding."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool = False
    magnitude: TensorInfo | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def fits(self, shape: RowsShape | None) -> RowsShape | None:
        """None if a weight of this shape is theirs, else the shape they need."""
        needed = (self.b.shape[0], self.a.shape[1])
        if self.transposed:
            needed = needed[::-1]
        return None if shape == needed else needed

    def merge(self, rows: "torch.Tensor", start: int) -> "torch.Tensor":
        """`rows` of the weight from row `start` on, in float32, with the change made."""
        merged = rows.float().add_(self.delta(start, start + len(rows)))
        if self.magnitude is None:
            return merged
        norms = merged.norm(dim=1)
        factors = read_tensor(self.magnitude, start, start + len(rows)).float() / norms
        return factors.view(-1, 1) * merged

    def delta(self, start: int, stop: int) -> "torch.Tensor":
        """(B @ A) * scale in float32, rows start..stop of the weight: shape (stop - start, in)."""
        if self.transposed:
            product = (read_tensor(self.b).float() @ read_tensor(self.a).float()[:, start:stop]).T
        else:
            product = read_tensor(self.b, start, stop).float() @ read_tensor(self.a).float()
        return product * self.scale

    @property
    def acts(self) -> bool:
        """Whether it may change its weight: B A is nothing where one of the two is zero."""
        both = read_float32(self.b).any() and read_float32(self.a).any()
        return bool(both) or self.magnitude is not None


@dataclass(frozen=True)
class Tokens:
    """Rows `indices` of an embedding or output layer, trained alone; `rows` in the same order."""

    indices: tuple[int, ...]
    rows: TensorInfo

    def fits(self, shape: RowsShape | None) -> RowsShape | None:
        """None if a weight of this shape is theirs, else the smallest that is."""
        needed = (max(self.indices) + 1, self.rows.shape[1])
        fitting = shape and shape[0] >= needed[0] and shape[1] == needed[1]
        return None if fitting else needed

    def merge(self, rows: "torch.Tensor", start: int) -> "torch.Tensor":
        """`rows` of the weight from row `start` on, in float32, the trained ones among them."""
        merged, trained = rows.float(), read_tensor(self.rows).float()
        for position, index in enumerate(self.indices):
            if start <= index < start + len(rows):
                merged[index - start] = trained[position]
        return merged
