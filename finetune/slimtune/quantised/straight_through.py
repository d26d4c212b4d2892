"""The matrices of a model as its file will hold them, while its own weights learn in float32.

    y = x Q(W)ᵀ forwards,  dL/dW = dL/dQ(W) backwards            (straight-through estimator)

Q is decided once, by ggml's encoder with what columns make up for (`export.feedback`): its scales
stay, and W begins as what each value was to be when it was rounded. So the first step multiplies
with the very bytes that a conversion to a given size writes, and every later one with the nearest
codes (`export.held_scales`). Scales that are chosen anew each step cannot have that start, and lose
what it is worth: rounding to the nearest alone errs three times as much.

Bengio et al., arXiv:1308.3432; LLM-QAT, arXiv:2305.17888, with the model itself as teacher.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import nn

from slimtune.export import feedback
from slimtune.export.held_scales import HeldScales
from slimtune.export.imatrix import squares_of
from slimtune.export.plan import GgufPlan
from slimtune.export.quant_types import PLAIN
from slimtune.export.tensors import row_order
from slimtune.training.distillation import DistillationTrainer


class _Matrix(NamedTuple):
    """A quantised matrix by its GGUF name; `order` is that of a head's rows in the file."""

    name: str
    held: HeldScales
    order: np.ndarray | None


class QuantisedWeights:
    """Q(W) of every matrix of a plan whose importance has been measured.

    `targets` are what W begins as; `install` hands them over and lets them go. With `part` it is
    that of one module, such as "model.layers.3.": only its matrices are there, by its own names.
    """

    def __init__(self, plan: GgufPlan, part: str = "") -> None:
        self._plan = plan
        self._matrices: dict[str, _Matrix] = {}  # by the name of the parameter
        self._halves: dict[str, Type] = {}
        self.targets: dict[str, np.ndarray] = {}
        for name, choice in plan.choices.items():
            source = plan.source.get(name)
            if source is None or choice.type == Type.F32 or not source.startswith(part):
                continue
            own = source.removeprefix(part)
            plan.encoding.encoder.prepare(choice.type)
            if choice.type in PLAIN:
                self._halves[own] = choice.type
            else:
                self._matrices[own], self.targets[own] = _begun(plan, name, choice.type)

    @property
    def matrices(self) -> set[str]:
        """The parameters that `encoded` has the bytes of."""
        return set(self._matrices)

    def install(self, model: nn.Module) -> None:
        """The model's weights become what they are to begin with."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.targets:
                    parameter.copy_(torch.from_numpy(self.targets.pop(name)))

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Within, the model multiplies with what the file would hold now."""
        own = {name: parameter.data for name, parameter in model.named_parameters()}
        try:
            for name, parameter in model.named_parameters():
                parameter.data = self._rounded(name, parameter.data)
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.data = own[name]

    def encoded(self) -> dict[str, np.ndarray]:
        """GGUF name -> (rows, bytes) of every quantised matrix, as of the last rounding."""
        return {
            matrix.name: matrix.held.encoded.reshape(self._plan.shape(matrix.name)[0], -1)
            for matrix in self._matrices.values()
        }

    def _rounded(self, name: str, own: torch.Tensor) -> torch.Tensor:
        if name not in self._matrices and name not in self._halves:
            return own
        values = own.detach().float().cpu().numpy()
        if name in self._halves:
            encoder, kind = self._plan.encoding.encoder, self._halves[name]
            rounded = encoder.decode(encoder.encode(values, kind), kind, values.shape)
        else:
            _, held, order = self._matrices[name]
            rounded = _as_in_model(held.moved(_as_in_file(values, order)), order)
        return torch.from_numpy(rounded).to(own.device, own.dtype)


class QuantisedTrainer(DistillationTrainer):
    """DistillationTrainer whose steps and validations multiply with what the file would hold.

    Between them the model has its own weights: the optimizer moves them, checkpoints hold them.
    """

    def __init__(self, *args: Any, weights: Callable[[], QuantisedWeights], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights = weights

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.weights().in_place_of(self.model):
            return super().training_step(model, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.weights().in_place_of(self.model):
            return super().evaluate(*args, **kwargs)


def begun(plan: GgufPlan, name: str, kind: Type, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, targets) of some rows of a matrix in the file's order: `encode_with_targets` by what
    has been measured of it."""
    cost = plan.encoding.importance.cost_of(name, plan.shape(name))
    squares = squares_of(cost.feedback)
    return feedback.encode_with_targets(
        plan.encoding.encoder, rows, kind, squares, cost.column_weights
    )


def decoded(plan: GgufPlan, name: str, encoded: np.ndarray) -> np.ndarray:
    """What the (rows, bytes) of a matrix stand for, its rows in the model's order."""
    kind, shape = plan.choices[name].type, (len(encoded), plan.shape(name)[1])
    values = plan.encoding.encoder.decode(encoded, kind, shape)
    return _as_in_model(values, row_order(plan.architecture, name))


def _begun(plan: GgufPlan, name: str, kind: Type) -> tuple[_Matrix, np.ndarray]:
    """A matrix with its scales chosen, and what its values begin as, in the model's order."""
    order = row_order(plan.architecture, name)
    rows = _as_in_file(plan.checkpoint.read_float32(plan.source[name]), order)
    encoded, targets = begun(plan, name, kind, rows)
    held = HeldScales(plan.encoding.encoder, encoded, kind, rows.shape)
    return _Matrix(name, held, order), _as_in_model(targets, order)


def _as_in_file(rows: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    if order is None:
        return rows
    return rows.reshape(-1, len(order), rows.shape[1])[:, order].reshape(rows.shape)


def _as_in_model(rows: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return _as_in_file(rows, None if order is None else np.argsort(order))
