"""Types for a file of given bytes, bits or loss: the target of the settings, met or refused.

The bytes are the whole file's, metadata and padding included, and never above the target; bits are
those of the tensors alone, as llama.cpp counts them. What an allocation is expected to lose comes
from `type_losses`, the choice from `budget`.
"""

import logging
import math
from dataclasses import dataclass, replace

from slimtune.config.gguf import Gguf
from slimtune.console import size
from slimtune.errors import SettingsError
from slimtune.export.budget import Allocation, Choices, Frontier, Option, total_bytes, total_loss
from slimtune.export.gguf_writer import header_bytes, padded
from slimtune.export.plan import GgufPlan
from slimtune.export.quant_types import TOLERANCES, candidates, encoded_bytes
from slimtune.export.type_losses import predicts, type_losses

_log = logging.getLogger(__name__)

# The likelihood that the proof allows a file to lose, from what it is expected to: the rows of a
# proof are few and not those that were measured. SmolLM2 at 0.078 nats lost 0.08 on 24 rows.
_TIMES, _AT_LEAST = 5.0, TOLERANCES["Q8_0"]
_UNKNOWN = max(TOLERANCES.values())
ROW = 256  # values of a row that any type can have


@dataclass(frozen=True)
class Sizes:
    """What of a file's bytes is no choice: its header, and the tensors that are F32."""

    header: int
    vectors: int
    parameters: int

    @classmethod
    def of(cls, plan: GgufPlan, name: str) -> "Sizes":
        vectors = [tensor for tensor in plan.tensors if not plan.is_matrix(tensor)]
        used = sum(padded(4 * math.prod(plan.shape(tensor))) for tensor in vectors)
        return cls(header_bytes(plan, name), used, plan.parameters)

    @property
    def fixed(self) -> int:
        return self.header + self.vectors


def smallest(plan: GgufPlan) -> GgufPlan:
    """The plan with the smallest types that rows and encoder allow: before anything is known."""
    options = {}
    for name in (name for name in plan.tensors if plan.is_matrix(name)):
        shape = plan.shape(name)
        kinds = candidates(shape[1], plan.encoding.encoder.k_quants)
        sizes = {kind: padded(encoded_bytes(shape, kind)) for kind in kinds}
        kind = min(sizes, key=sizes.__getitem__)
        options[name] = Option(kind, sizes[kind], 0.0)
    return replace(plan, allocation=Allocation(options))


def require_possible(plan: GgufPlan, gguf: Gguf, name: str) -> None:
    """Raises SettingsError for a target that even the `smallest` plan misses; before any work."""
    sizes = Sizes.of(plan, name)
    _require_room(_most(gguf, sizes), plan.allocation.bytes, sizes, gguf)


def require_possible_when_cut(plan: GgufPlan, gguf: Gguf, name: str, parameters: int) -> None:
    """The same for a model of `parameters` that will be cut out of the plan's.

    Of sizes that nobody knows yet it is a bound: as if all were matrices of the smallest type. What
    it lets pass may be refused once the model is there.
    """
    sizes = Sizes(header_bytes(plan, name), 0, parameters)
    kinds = candidates(ROW, plan.encoding.encoder.k_quants)
    least = min(encoded_bytes((parameters // ROW, ROW), kind) for kind in kinds)
    _require_room(_most(gguf, sizes), least, sizes, gguf)


def bytes_allowed(plan: GgufPlan, gguf: Gguf, name: str) -> int:
    """The whole file's bytes at a target that is a size or bits a weight."""
    sizes = Sizes.of(plan, name)
    return sizes.fixed + _most(gguf, sizes)


def _require_room(most: int | None, least: int, sizes: Sizes, gguf: Gguf) -> None:
    if most is None or least <= most:
        return
    whole = sizes.fixed + least
    bits = 8 * (sizes.vectors + least) / sizes.parameters
    if gguf.target_size is not None:
        asked, cure = f"gguf.target_size: {size(gguf.target_size)}", f"--target-size {whole}"
    else:
        asked, cure = f"gguf.target_bits: {gguf.target_bits:g}", f"--target-bits {_up(bits)}"
    raise SettingsError(
        f"{asked}: this model cannot be so small",
        f"its smallest types take {size(whole)}, {whole:,} bytes or {bits:.2f} bits a weight",
        f"{cure}, or prune it first (model_pruning.py)",
    )


def allocate(plan: GgufPlan, gguf: Gguf, name: str) -> GgufPlan:
    """The plan with a type for every matrix that meets the target of the settings.

    Raises SettingsError for a loss that nothing meets, or that nobody can tell.
    """
    plan, sizes = smallest(plan), Sizes.of(plan, name)
    most = _most(gguf, sizes)
    frontier = Frontier(type_losses(plan), most)
    if most is None:
        chosen = _within_loss(frontier, gguf.max_loss, predicts(plan))
    else:
        _require_room(most, total_bytes(frontier.smallest), sizes, gguf)  # some types are left out
        chosen = frontier.within_bytes(most)
    allocation = Allocation(chosen, predicts(plan))
    _say(allocation, frontier, sizes, gguf)
    return replace(plan, allocation=allocation)


def tolerance(plan: GgufPlan) -> float:
    """The rise of the loss that the proof of a plan's file allows, in nats a token."""
    if plan.allocation is None:
        return TOLERANCES[plan.quantization]
    if plan.allocation.loss is None:
        return _UNKNOWN
    return max(_AT_LEAST, _TIMES * plan.allocation.loss)


def recorded(allocation: Allocation) -> dict[str, object]:
    """What run.json says of an allocation: each tensor's type and expected loss, and the sum."""
    known = allocation.predicts
    tensors = {
        name: {"type": option.type.name} | ({"loss": option.loss} if known else {})
        for name, option in allocation.options.items()
    }
    return {"expected_loss": allocation.loss, "tensors": tensors}


def _most(gguf: Gguf, sizes: Sizes) -> int | None:
    """Bytes that the matrices may take."""
    if gguf.target_size is not None:
        return gguf.target_size - sizes.fixed
    if gguf.target_bits is not None:
        return int(gguf.target_bits * sizes.parameters / 8) - sizes.vectors
    return None


def _within_loss(frontier: Frontier, most: float, known: bool) -> Choices:
    if not known:
        raise SettingsError(
            f"gguf.max_loss: {most:g}, and nobody can tell the loss",
            "the importance matrix says what enters a matrix, not what an error in it costs",
            "measure that with --imatrix auto, or give --target-size or --target-bits",
        )
    chosen = frontier.within_loss(most)
    if chosen is None:
        least = total_loss(frontier.best)
        raise SettingsError(
            f"gguf.max_loss: {most:g} nats a token, and nothing loses so little",
            f"the best types of all matrices are expected to lose {least:.2g}",
            f"--max-loss {least * 1.01:.2g}, or --quantization F32, which loses nothing",
        )
    return chosen


def _say(allocation: Allocation, frontier: Frontier, sizes: Sizes, gguf: Gguf) -> None:
    whole = size(sizes.fixed + allocation.bytes)
    if gguf.max_loss is None and allocation.options == frontier.best:
        _log.info("%s: all that the model has, larger than that it does not become", whole)
    if not allocation.predicts:
        _log.warning(
            "caution: types are chosen by what enters each matrix alone: no loss can be told. "
            "--imatrix auto measures what errors cost, too"
        )
        return
    _log.info("%s: expected to lose %.4f nats a token", whole, allocation.loss)


def _up(bits: float) -> str:
    return f"{-(-bits * 100 // 1) / 100:.2f}"
