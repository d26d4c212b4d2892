"""Float32 matrix products on AMD CPUs with AVX-512, by oneDNN in place of MKL: trick `onednn`.

torch multiplies float32 matrices on a CPU with MKL, which keeps to AVX2 on AMD's processors; oneDNN
is in torch as well, gives the same numbers to rounding, and uses AVX-512: 1.3 to 2.5 times as many
products a second (benchmarks/onednn.py prints both). Elsewhere nothing is changed.

oneDNN compiles every new shape: 0.6 ms and 0.6 MB that stay. So it gets only whole blocks of rows,
and `padded_length` says how many rows a batch needs for that: eight sizes from a number to its
double.
"""

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from slimtune.machine.tricks import Nested, is_on

_SMALLEST = 1 << 20  # multiplications below which a call's own time is more than oneDNN saves
_BLOCK, _EVEN = 64, 8  # rows come in blocks; no inner size of a model is odd
_linear = torch.ops.mkldnn._linear_pointwise.default


def onednn_is_faster() -> bool:
    """On an AMD processor with AVX-512; the answer never changes, so runs can be repeated."""
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_supported()):
        return False
    return "AuthenticAMD" in _processor()


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    return described.read_text(encoding="utf-8") if described.is_file() else platform.processor()


@contextmanager
def onednn_products(numbers: torch.dtype = torch.float32) -> Iterator[None]:
    """Within, large float32 products of CPU tensors go through the faster library.

    For work on many tokens at a time, in batches of `padded_length`, by a model of such `numbers`:
    others have nothing of it.
    """
    if numbers != torch.float32 or not (is_on("onednn") and onednn_is_faster()):
        yield
        return
    with through_onednn():
        yield


@contextmanager
def through_onednn() -> Iterator[None]:
    """The same on every processor, whether it helps there or not."""
    with _products.opened():
        yield


def padded_length(rows: int) -> int:
    """Within `onednn_products` the next number of rows that is one of few; elsewhere `rows`."""
    if not _products.users:
        return rows
    step = max(_BLOCK, 2 ** rows.bit_length() // 16)
    return -(-rows // step) * step


@contextmanager
def _kernels_replaced() -> Iterator[None]:
    """Replaces torch's CPU kernels of mm and addmm, forward and backward, until it ends."""
    mm = torch.library.get_kernel("aten::mm", "CPU")
    addmm = torch.library.get_kernel("aten::addmm", "CPU")

    def product(keys: object, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if _worth_it(a, b):
            return _linear(a, b.t(), None, "none", [], "")
        return mm.call_boxed(keys, a, b)

    def biased(
        keys: object, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **scales: float
    ) -> torch.Tensor:
        if bias.dim() == 1 and len(bias) == b.shape[1] and not scales and _worth_it(a, b):
            return _linear(a, b.t(), bias, "none", [], "")
        return addmm.call_boxed(keys, bias, a, b, **scales)

    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        library.impl("mm", product, "CPU", with_keyset=True)
        library.impl("addmm", biased, "CPU", with_keyset=True)
        yield


_products = Nested(_kernels_replaced)


def _worth_it(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype == torch.float32
        and a.shape[0] % _BLOCK == a.shape[1] % _EVEN == 0
        and a.numel() * b.shape[1] >= _SMALLEST
        and _dense(a)
        and _dense(b)
    )


def _dense(matrix: torch.Tensor) -> bool:
    """Rows one after another in memory, or columns: what oneDNN takes without a copy."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()
