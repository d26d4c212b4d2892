"""What each size of a model would lose, take and do, before any work: the table of a dry run.

A line is a named type or a number of bits: bytes of the file, the loss that llama.cpp's mixture is
expected to have, and the least that any choice of types has in the same bytes; then memory in use
(tensors, and the KV cache of a context in F16) and the tokens a second that it can write at most,
for which it reads every tensor but the embedding once a token, at the bandwidth measured here.
"""

import math
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from slimtune.config.catalogues import names
from slimtune.console import size
from slimtune.export.allocation import Sizes, smallest
from slimtune.export.budget import Choices, Frontier, Option, total_bytes, total_loss
from slimtune.export.gguf_writer import padded
from slimtune.export.plan import GgufPlan
from slimtune.export.quant_types import encoded_bytes
from slimtune.export.type_losses import predicts, type_losses
from slimtune.models import memory

CONTEXT = 4096  # tokens, or as many as the model knows
HEADERS = ("type", "size", "bits", "loss", "best", "memory", "tokens/s", "fits", "best ● loss ○")
PICTURES = 1  # the last columns that only draw what stands before them
_BITS = (2.75, 3.0, 3.5, 4.0)  # below the named types
_SHOWN = [name for name in names("gguf_types") if name not in ("F32", "BF16")]
_PLOT = 16  # characters
_DECADES = 3.0  # that the plot spans: less than a thousandth of the largest loss is its left edge
_PROBE = 64 << 20  # bytes that each thread reads


@dataclass(frozen=True)
class Line:
    """One size. `loss`: of the named type; `best`: the least in as many bytes; None: not known."""

    name: str
    bytes: int
    bits: float
    loss: float | None
    best: float | None
    memory: int
    read: int  # bytes for a token


def lines(plan: GgufPlan, name: str) -> list[Line]:
    """From the largest to the smallest."""
    named = {kind: replace(plan, allocation=None, quantization=kind) for kind in _SHOWN}
    named = {kind: one for kind, one in named.items() if not one.needs_tool}
    sizes = Sizes.of(plan, name)
    mixtures = {kind: _choices(one) for kind, one in named.items()}
    losses, best = {}, None
    if predicts(plan):
        plain = type_losses(next(iter(named.values())))
        losses = {kind: _loss(chosen, plain) for kind, chosen in mixtures.items()}
        best = Frontier(type_losses(smallest(plan)))
    found = [
        _line(plan, sizes, kind, chosen, losses.get(kind), best)
        for kind, chosen in mixtures.items()
    ]
    if best:
        for bits in _BITS:
            chosen = best.within_bytes(int(bits * sizes.parameters / 8) - sizes.vectors)
            if chosen is not None:
                found.append(_line(plan, sizes, f"{bits:g} bits", chosen, None, best))
        found.append(_line(plan, sizes, "smallest", best.smallest, None, best))
        if plan.allocation:
            found.append(_line(plan, sizes, plan.quantization, plan.allocation.options, None, best))
    return sorted(found, key=lambda line: -line.bytes)


def table(plan: GgufPlan, name: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows for the console."""
    found, bandwidth = lines(plan, name), read_bandwidth()
    free, graphics = memory.available_memory(), graphics_memory()
    known = [loss for line in found for loss in (line.loss, line.best) if loss]
    rows = [
        (
            line.name,
            size(line.bytes),
            f"{line.bits:.2f}",
            _nats(line.loss),
            _nats(line.best),
            size(line.memory),
            f"{bandwidth / line.read:,.0f}",
            _fits(line.memory, free, graphics),
            _plot(line, known),
        )
        for line in found
    ]
    return HEADERS, rows


def notes(plan: GgufPlan, name: str) -> dict[str, str]:
    """What the table's figures mean, and the exact size, for the last lines of a dry run."""
    words = f"tensors and a context of {_context(plan)} tokens; tokens/s is what memory allows"
    told = {"memory in the table": words}
    if plan.allocation:
        told["on disk"] = size(Sizes.of(plan, name).fixed + plan.allocation.bytes)
    if not predicts(plan):
        words = "not known: --imatrix auto measures it, forwards and backwards on training rows"
        return told | {"loss": words}
    return told | {"loss": "KL divergence from the model in nats a token, expected"}


def read_bandwidth() -> float:
    """Bytes a second that all cores read together: the best of three."""
    threads = os.cpu_count() or 1
    values = [np.ones(_PROBE // 4, np.float32) for _ in range(threads)]
    best = math.inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(lambda one: np.dot(one, one), values))
            best = min(best, time.perf_counter() - started)
    return threads * _PROBE / best


def graphics_memory() -> int | None:
    """Free bytes of the first NVIDIA GPU, by its own tool: torch need not be loaded for it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    first = done.stdout.split("\n", 1)[0].strip()
    return int(first) << 20 if done.returncode == 0 and first.isdigit() else None


def _line(
    plan: GgufPlan,
    sizes: Sizes,
    name: str,
    chosen: Choices,
    loss: float | None,
    best: Frontier | None,
) -> Line:
    matrices = total_bytes(chosen)
    tensors = sizes.vectors + matrices
    least = best.within_bytes(matrices) if best else None
    shape = plan.architecture.shape
    cache = 2 * shape.layers * shape.kv_width * _context(plan) * 2
    looked_up = 0 if shape.tied else chosen["token_embd.weight"].bytes
    return Line(
        name,
        sizes.header + tensors,
        8 * tensors / sizes.parameters,
        loss,
        total_loss(least) if least else None,
        tensors + cache,
        tensors - looked_up,
    )


def _choices(plan: GgufPlan) -> Choices:
    kinds = {name: choice.type for name, choice in plan.choices.items() if plan.is_matrix(name)}
    return {
        name: Option(kind, padded(encoded_bytes(plan.shape(name), kind)), 0.0)
        for name, kind in kinds.items()
    }


def _loss(chosen: Choices, known: dict[str, list[Option]]) -> float | None:
    """The sum over all matrices; None where a type cannot hold the values of one."""
    losses = {name: {one.type: one.loss for one in options} for name, options in known.items()}
    found = [losses[name].get(option.type) for name, option in chosen.items()]
    return None if None in found else sum(found)


def _context(plan: GgufPlan) -> int:
    return min(CONTEXT, plan.architecture.context)


def _nats(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.2g}" if loss < 0.001 else f"{loss:.4f}"


def _fits(needed: int, free: int, graphics: int | None) -> str:
    fits = needed * memory.RESERVE
    if graphics is not None and fits <= graphics:
        return "GPU"
    return "RAM" if fits <= free else "no"


def _plot(line: Line, known: list[float]) -> str:
    """Both losses on one logarithmic axis, to the right the largest of the table."""
    drawn = [" "] * _PLOT
    for mark, loss in (("○", line.loss), ("●", line.best)):
        if loss:
            place = 1 + math.log10(loss / max(known)) / _DECADES
            drawn[round((_PLOT - 1) * max(0.0, place))] = mark
    return "".join(drawn)
