"""A merge held against peft itself: some values of every weight it changes, to their rounding.

peft's layers are asked what they do to unit vectors, so that the answer is the weight itself, with
nothing of how peft merges or how this project reads adapters in it. A few rows and columns of each
weight: whatever makes a merge wrong (a scale, a moved base, a name) makes nearly all of it wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding, Linear
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch.func import functional_call

from slimtune.errors import QualityError
from slimtune.models.adapters import Adapter
from slimtune.models.attaching import attach_to_nothing
from slimtune.models.weights import EMBEDDING, Checkpoint

if TYPE_CHECKING:
    from slimtune.models.merging import MergedCheckpoint

_NAME = "default"  # of the adapter, as peft calls the first one
_ROWS, _COLUMNS = 16, 64
# Float32 sums in another order; measured below 2e-6 of the largest value.
_SUMS = 1e-5

BaseRows = Callable[[str, list[int]], torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """Values of one weight under peft, float32: `values` (rows x columns), `base` without it."""

    weight: str
    rows: list[int]
    columns: list[int]
    values: torch.Tensor
    base: torch.Tensor

    def error(self, merged: torch.Tensor) -> float:
        """The largest difference to `merged`, in roundings of its type: above 1 it is no rounding.

        Base and change may each have been rounded before their sum was, as peft does.
        """
        kind = torch.finfo(merged.dtype)
        size = self.values.abs() + self.base.abs() + (self.values - self.base).abs()
        bound = size * kind.eps / 2 + size.max() * _SUMS + kind.smallest_normal * kind.eps
        return ((merged.float() - self.values).abs() / bound).max().item()


def require_as_peft(source: "MergedCheckpoint", merged: Checkpoint) -> None:
    """QualityError unless `merged` (written, or `source` itself) is base + adapter under peft.

    For what streams; the memory is that of the adapter. InputError where peft has no place for one
    of its tensors.
    """
    adapted = attach_to_nothing(source, source.lora)

    def base_rows(weight: str, rows: list[int]) -> torch.Tensor:
        name = weight if weight in source.tensors else EMBEDDING
        return torch.stack([source.read_unmerged(name, row, row + 1)[0] for row in rows]).float()

    require_samples(sampled(adapted, base_rows), merged, source.lora, source.keeps_zeros)


def require_samples(
    samples: list[Sample], merged: Checkpoint, lora: Adapter, zeros_kept: bool = False
) -> None:
    """QualityError naming the first weight of which a sample is not what `merged` holds."""
    for one in samples:
        name = one.weight if one.weight in merged.tensors else EMBEDDING
        found = torch.stack([merged.read(name, row, row + 1)[0] for row in one.rows])
        found = found.reshape(len(one.rows), -1)[:, one.columns]
        if zeros_kept and name.endswith("proj.weight"):
            found = torch.where(one.base == 0, one.values.to(found.dtype), found)
        error = one.error(found)
        if not error <= 1:
            raise QualityError(
                f"{lora.folder}: merged, {one.weight} is not what base and adapter are under peft",
                f"values differ by {error:.3g} times the rounding of {found.dtype}",
                "nothing was written; merge it with peft itself, and report the adapter",
            )


@torch.no_grad()
def sampled(adapted: PeftModel, base_rows: BaseRows | None = None) -> list[Sample]:
    """Values of every weight that peft's layers change, by its name in the base.

    What is under a layer comes from `base_rows`; else it is in the model, and the weights that no
    layer of peft's changes have samples too.
    """
    found = [] if base_rows else _untouched(adapted)
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, Linear | Embedding):
            found.append(_of_lora(f"{name}.weight", layer, base_rows))
        elif isinstance(layer, TrainableTokensWrapper):
            found.append(_of_tokens(f"{name}.weight", layer))
        elif isinstance(layer, ModulesToSaveWrapper):
            trained = layer.modules_to_save[_NAME].named_parameters()
            found += [_of_whole(f"{name}.{part}", weight) for part, weight in trained]
    return found


def _of_lora(weight: str, layer: Linear | Embedding, base_rows: BaseRows | None) -> Sample:
    """W + B A * scale, or DoRA's, as the layer's own forward pass has it."""
    below = layer.base_layer.weight
    rows, columns = _spread(below.shape[0], _ROWS), _spread(below.shape[1], _COLUMNS)
    base = base_rows(weight, rows) if base_rows else below[rows].float()
    if isinstance(layer, Embedding):
        ids = torch.tensor(rows)
        values = (base + layer(ids).float() - layer.base_layer(ids).float())[:, columns]
    else:
        values = _by_unit_vectors(layer, rows, columns, base)
    return Sample(weight, rows, columns, values, base[:, columns])


def _by_unit_vectors(
    layer: Linear, rows: list[int], columns: list[int], base: torch.Tensor
) -> torch.Tensor:
    """Rows and columns of the weight that a linear layer acts as: (rows, columns), float32."""
    units = torch.zeros(1 + len(columns), base.shape[1])  # the first one shows the bias
    units[range(1, 1 + len(columns)), columns] = 1
    parts = {
        f"lora_B.{_NAME}.weight": layer.lora_B[_NAME].weight[rows].float(),
        f"lora_A.{_NAME}.weight": layer.lora_A[_NAME].weight.float(),
        "base_layer.weight": base,
    }
    for name, parameter in layer.named_parameters():
        if name.endswith("bias") or "lora_magnitude_vector" in name:
            parts[name] = parameter[rows].float()
    answers = functional_call(layer, parts, (units,)).float()
    return (answers[1:] - answers[0]).T


def _untouched(adapted: PeftModel) -> list[Sample]:
    """Of every plain layer, a tied output layer among them: a merge may change what it must not."""
    base = adapted.get_base_model()
    inside = tuple(
        f"{name}."
        for name, layer in base.named_modules()
        if isinstance(layer, Linear | Embedding | TrainableTokensWrapper | ModulesToSaveWrapper)
    )
    parameters = base.named_parameters(remove_duplicate=False)
    plain = {name: weight for name, weight in parameters if not name.startswith(inside)}
    return [_of_whole(name, weight) for name, weight in plain.items()]


def _of_whole(weight: str, trained: torch.Tensor) -> Sample:
    rows = _spread(trained.shape[0], _ROWS)
    values = trained[rows].reshape(len(rows), -1).float()
    columns = _spread(values.shape[1], _COLUMNS)
    return Sample(weight, rows, columns, values[:, columns], values[:, columns])


def _of_tokens(weight: str, layer: TrainableTokensWrapper) -> Sample:
    rows = list(layer.token_adapter.token_indices[_NAME])[:_ROWS]
    values = layer.token_adapter.trainable_tokens_delta[_NAME][: len(rows)].float()
    columns = _spread(values.shape[1], _COLUMNS)
    return Sample(weight, rows, columns, values[:, columns], values[:, columns])


def _spread(length: int, wanted: int) -> list[int]:
    """Up to `wanted` places from the first to the last."""
    return sorted({int(place) for place in torch.linspace(0, length - 1, min(wanted, length))})
