"""Values -> bytes of a GGUF type whose scales stay what they are: each value to its nearest code.

A block's scales are chosen once, by ggml's encoder; from there on its codes alone follow its
values, and what they stand for is ggml's own decoding of the bytes. While a model trains, most
codes of a step are those of the step before: only blocks with another code are packed and decoded.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from slimtune.export.feedback import grid_of
from slimtune.export.ggml import Encoder

_ALIKE = 16  # values that share a scale in any type, or a multiple of that
_AT_ONCE = 1 << 13  # blocks whose codes are compared together: 8 MB at the most


class HeldScales:
    """A matrix in a type: `encoded`, its bytes, and `decoded`, what they stand for in float32.

    Both change in place when the matrix is `moved`.
    """

    def __init__(
        self, encoder: Encoder, encoded: np.ndarray, kind: Type, shape: tuple[int, int]
    ) -> None:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        self.kind = kind
        self._encoder, self._grid, self._values = encoder, grid_of(kind), values
        self.encoded = encoded.view(np.uint8).reshape(-1, size).copy()
        self.decoded = encoder.decode(self.encoded, kind, shape).reshape(-1, values)
        self._lowest, highest = (
            self._decode(self.encoded & ~self._grid.mask | end)[:, ::_ALIKE, None].copy()
            for end in (self._grid.lowest, self._grid.highest)
        )
        span = highest - self._lowest
        self._inverse = np.divide(1, span, out=np.zeros_like(span), where=span != 0)
        self._ranks = self._nearest(self.decoded, slice(None))

    def moved(self, values: np.ndarray) -> np.ndarray:
        """The matrix rounded to its nearest codes, (rows, columns): `decoded` in that shape."""
        blocks = np.ascontiguousarray(values, np.float32).reshape(-1, self._values)
        for start in range(0, len(blocks), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            ranks = self._nearest(blocks[some], some)
            changed = np.flatnonzero((ranks != self._ranks[some]).any(1))
            if not len(changed):
                continue
            self._ranks[start + changed] = ranks[changed]
            codes = self._grid.packed(ranks[changed])
            bytes_of = self.encoded[start + changed] & ~self._grid.mask | codes
            self.encoded[start + changed] = bytes_of
            self.decoded[start + changed] = self._decode(bytes_of)
        return self.decoded.reshape(values.shape)

    def _nearest(self, blocks: np.ndarray, where: slice) -> np.ndarray:
        """The ranks (blocks, values) of the codes that are nearest; of equal scales the first."""
        parts = blocks.reshape(len(blocks), -1, _ALIKE)
        shares = (parts - self._lowest[where]) * self._inverse[where]
        ranks, _ = self._grid.nearest(shares)
        return ranks.astype(np.uint8).reshape(blocks.shape)

    def _decode(self, encoded: np.ndarray) -> np.ndarray:
        return self._encoder.decode(encoded, self.kind, (len(encoded), self._values))
