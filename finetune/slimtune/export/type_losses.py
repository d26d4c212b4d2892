"""What each type would cost in each matrix, from a sample of its rows, before anything is written.

loss of type Q in W = ½ Σ_ij F_ij (W − Q(W))²_ij, with F_ij = rows_i columns_j / total of `imatrix`,
and what the 8 bits cost to which llama.cpp rounds what enters W.

Rows are drawn in proportion to rows_i, evenly along their running sum, so the loss is half the mean
over the sample of Σ_j columns_j (W − Q(W))²_ij: of an embedding, the tokens that occur. All types
are tried on the same rows, by the encoder that will write them and with its weights for columns.
Where columns will make up for those before them (`feedback`), columns_j is what is left to it, and
the square is more by what moving a value adds to its error.

A model that was unpacked from a file and trained since lies near the grid of that file's type:
rounding to it errs little, by the old measure, and takes the training back (SmolLM2 from Q4_1, with
an adapter merged, in Q4_1 again: 0.36 -> 1.06 nats a token). So does a finer type whose scales can
be set so that the old grid is among its steps: of Q5_1's 31 steps, 30 are Q4_1's 15, halved. Its
errors are then those of the near type; where their correlation is `_ALIKE` or more, the type is
left out in that matrix. Of that model it was 0.4 to 0.9 for Q5_1, 0.1 at most for Q5_0 and Q4_0.

Where nothing is known but what enters a matrix, the loss is the share of its output that is error,
Σ_j x_j² (W − Q(W))²_ij / Σ_j x_j² W_ij²: enough to rank matrices of one kind, no figure in nats.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from slimtune.export.budget import Option
from slimtune.export.feedback import MOVED
from slimtune.export.gguf_writer import encode, padded
from slimtune.export.imatrix import Sensitivity
from slimtune.export.plan import GgufPlan
from slimtune.export.quant_types import PLAIN, candidates, encoded_bytes
from slimtune.export.tensors import row_order

_log = logging.getLogger(__name__)

# One row in so many, so that all types together are less work than writing the file; and limits.
_ONE_IN, _FEWEST, _MOST = 32, 8, 32
_READ_WHOLE = 1 << 17  # values

# Shares of the squares that rounding errs by: of what was rounded to a type before, less than
# `_SAME`; a type with one bit more errs by a quarter elsewhere, and by more than `_NEAR` beside one
# near whose grid the weights lie.
_SAME, _NEAR = 5e-6, 0.5
_ALIKE = 0.3
_ONE_BIT_MORE = {Type.Q4_0: Type.Q5_0, Type.Q4_1: Type.Q5_1, Type.Q3_K: Type.Q4_K}
_ONE_BIT_MORE |= {Type.Q4_K: Type.Q5_K, Type.Q5_K: Type.Q6_K}

Products = dict[tuple[Type, Type], float]  # of two types' errors, by the squares of the weights


def type_losses(plan: GgufPlan) -> dict[str, list[Option]]:
    """The options of every matrix of the plan.

    A type that cannot hold the values is left out.
    """
    names = [name for name in plan.tensors if plan.is_matrix(name)]
    encoder = plan.encoding.encoder
    kinds = {name: candidates(plan.shape(name)[1], encoder.k_quants) for name in names}
    for kind in {kind for found in kinds.values() for kind in found}:
        encoder.prepare(kind)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = dict(
            zip(names, pool.map(lambda name: _options(plan, name, kinds[name]), names), strict=True)
        )
    options, products = ({name: one[part] for name, one in found.items()} for part in (0, 1))
    for near in _near(list(products.values())):
        left_out = set()
        for name, known in products.items():
            back = _taking_back(known, near)
            options[name] = [one for one in options[name] if one.type not in back]
            left_out |= back
        _log.info(
            "left out: %s. The weights lie near the grid of %s, and rounding would take back what "
            "they learned since",
            ", ".join(sorted(kind.name for kind in left_out)),
            near.name,
        )
    return options


def _near(matrices: Sequence[Products]) -> list[Type]:
    """The types near whose grid a quarter of the matrices lie; none, where as many lie on one."""
    near, on = Counter(), Counter()
    for known in matrices:
        for kind, finer in _ONE_BIT_MORE.items():
            if (kind, finer) in known:
                on[kind] += known[kind, kind] <= _SAME
                near[kind] += known[finer, finer] > _NEAR * known[kind, kind] > _NEAR * _SAME
    few = len(matrices) / 4
    return [] if max(on.values(), default=0) >= few else [k for k in near if near[k] >= few]


def _taking_back(known: Products, near: Type) -> set[Type]:
    """The types that err in a matrix as `near` does, which is one of them."""
    if known.get((near, near), 0) <= _SAME:
        return set()
    alike = {
        one: known[one, near] / math.sqrt(known[one, one]) for one, _ in known if known[one, one]
    }
    return {one for one in alike if alike[one] >= _ALIKE * math.sqrt(known[near, near])}


def predicts(plan: GgufPlan) -> bool:
    """Whether the losses of the plan's matrices will be nats a token."""
    return plan.encoding.importance is not None and bool(plan.encoding.importance.sensitivity)


def _options(plan: GgufPlan, name: str, kinds: Iterable[Type]) -> tuple[list[Option], Products]:
    """A matrix' options, and the products of its quantised types' errors."""
    shape = plan.shape(name)
    rows, columns = _weights(plan, name)
    chosen, times = _drawn(rows, min(max(shape[0] // _ONE_IN, _FEWEST), _MOST, shape[0]))
    values = _rows(plan, name, chosen)
    scale = 0.5 if predicts(plan) else 1 / max(_weighed(values**2, columns, times), 1e-30)
    options, found = [], {}
    for kind in kinds:
        if kind == Type.F32:
            loss = 0.0
        else:
            encoded = encode(plan, name, values, kind)
            with np.errstate(over="ignore", invalid="ignore"):
                errors = plan.encoding.encoder.decode(encoded, kind, values.shape) - values
                if kind not in PLAIN:
                    found[kind] = errors[:_FEWEST].flatten()  # a copy: the others may go
                left = columns if kind in PLAIN else _left(plan, name, columns, kind)
                loss = scale * _weighed(errors**2, left, times) + _rounding(plan, name, kind)
        if math.isfinite(loss):
            options.append(Option(kind, padded(encoded_bytes(shape, kind)), loss))
    return options, _products(found, float((values[:_FEWEST] ** 2).sum()))


def _products(errors: Mapping[Type, np.ndarray], squares: float) -> Products:
    if not errors:
        return {}
    every = np.stack(list(errors.values()))
    with np.errstate(over="ignore", invalid="ignore"):
        shared = every @ every.T / max(squares, 1e-30)
    return dict(zip(product(errors, errors), shared.ravel().tolist(), strict=True))


def _rounding(plan: GgufPlan, name: str, kind: Type) -> float:
    """What it costs that llama.cpp rounds what enters a matrix of this type to 8 bits."""
    if kind in PLAIN or not predicts(plan):
        return 0.0
    wide = gguf.GGML_QUANT_SIZES[kind][0] == 256
    return 0.5 * float(plan.encoding.importance.sensitivity[name].rounding[int(wide)])


def _weighed(squares: np.ndarray, columns: np.ndarray, times: np.ndarray) -> float:
    """Mean over the sample of Σ_j columns_j squares_ij."""
    return float(times @ (squares.astype(np.float64) @ columns) / times.sum())


def _weights(plan: GgufPlan, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of rows and of columns, float64."""
    shape, importance = plan.shape(name), plan.encoding.importance
    if importance is None:
        return np.ones(shape[0]), np.ones(shape[1])
    if not importance.sensitivity:
        known = importance.of(name, shape[1])
        return np.ones(shape[0]), np.ones(shape[1]) if known is None else known.astype(np.float64)
    cost: Sensitivity = importance.cost_of(name, shape)
    return cost.rows.astype(np.float64), cost.columns.astype(np.float64)


def _left(plan: GgufPlan, name: str, columns: np.ndarray, kind: Type) -> np.ndarray:
    """Weights of columns in a type that the writer makes with feedback; named types are without."""
    if plan.allocation is None or not predicts(plan):
        return columns
    cost = plan.encoding.importance.sensitivity[name]
    return columns if cost.feedback is None else cost.left.astype(np.float64) * MOVED[kind]


def _drawn(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, how often each was drawn): `count` draws, evenly along the weights' running sum."""
    running = np.cumsum(weights)
    if running[-1] <= 0:
        running = np.arange(1, len(weights) + 1, dtype=np.float64)
    places = running[-1] * (np.arange(count) + 0.5) / count
    return np.unique(np.searchsorted(running, places), return_counts=True)


def _rows(plan: GgufPlan, name: str, chosen: np.ndarray) -> np.ndarray:
    """Some rows of the file's matrix, float32: a small one is read whole, which is one read."""
    order, stored = row_order(plan.architecture, name), plan.source[name]
    if order is not None:
        chosen = chosen // len(order) * len(order) + order[chosen % len(order)]
    rows, columns = plan.shape(name)
    if rows * columns <= _READ_WHOLE:
        return np.ascontiguousarray(plan.checkpoint.read_float32(stored)[chosen])
    read = plan.checkpoint.read_float32
    return np.concatenate([read(stored, row, row + 1) for row in map(int, chosen)])
