"""How much stays: ratios, or one number of parameters, turned into sizes that a model can have.

K-quants need rows of 256, other rows get larger types. So neurons, hidden channels and
heads * head_dim stay at multiples of 256 where K-quants profit: in a model whose hidden size is
such a multiple, on an axis that is several of them long. What a ratio became by it is said
(`rounded`).
"""

import math
from dataclasses import dataclass, replace

from slimtune.errors import InputError, SettingsError
from slimtune.models.model_shape import ModelShape

LARGEST_STEP = 1 / 3  # cuts over a third want iteration: prune, calibrate again, prune on


@dataclass(frozen=True)
class Ratios:
    """Shares to cut of each axis, 0 where it is left alone; or `parameters` to arrive at."""

    ffn: float = 0.0
    groups: float = 0.0
    layers: float = 0.0
    hidden: float = 0.0
    parameters: int | None = None


def smaller(shape: ModelShape, ratios: Ratios) -> ModelShape:
    """The shape that is left. Raises SettingsError for a ratio that cuts nothing, or all.

    `parameters` wins over `ffn` and `groups`: after layers and hidden channels have been cut by
    their own ratios, neurons and groups are cut by shares as equal as their rounding lets them be,
    so that the count comes closest; of two equally close, the one that keeps more neurons.
    """
    layers = _layers_left(shape, ratios.layers)
    hidden = _left("hidden", shape.hidden, ratios.hidden, _multiple(shape, shape.hidden))
    base = replace(shape, layers=layers, hidden=hidden)
    if ratios.parameters is not None:
        return _solved(base, ratios.parameters)
    ffn = _left("ffn", shape.ffn, ratios.ffn, _multiple(base, shape.ffn))
    left = with_groups(replace(base, ffn=ffn), _groups_left(base, ratios.groups))
    if left == shape:
        raise SettingsError(
            "pruning: every ratio is 0",
            "there is nothing to cut",
            "set --ffn-ratio, --kv-group-ratio, --layer-ratio, --hidden-ratio or --target-params",
        )
    return left


def with_groups(shape: ModelShape, groups: int) -> ModelShape:
    """The same shape with so many KV groups; each keeps its query heads."""
    return replace(shape, kv_heads=groups, heads=groups * (shape.heads // shape.kv_heads))


def rounded(before: ModelShape, after: ModelShape, ratios: Ratios) -> list[str]:
    """What each ratio became where it is not what was asked for, and why, in words."""
    asked = {
        "ffn_ratio": (ratios.ffn, before.ffn, after.ffn, _multiple(after, before.ffn)),
        "hidden_ratio": (
            ratios.hidden,
            before.hidden,
            after.hidden,
            _multiple(before, before.hidden),
        ),
        "kv_group_ratio": (ratios.groups, before.kv_heads, after.kv_heads, None),
        "layer_ratio": (ratios.layers, before.layers, after.layers, None),
    }
    if ratios.parameters is not None:
        del asked["ffn_ratio"], asked["kv_group_ratio"]
    found = []
    for name, (wanted, old, new, multiple) in asked.items():
        share = 1 - new / old
        if abs(share - wanted) < _TELLS_APART:
            continue
        why = f"{new} of {old} are left, a multiple of {multiple}" if multiple else ""
        why = why or f"{new} of {old} are left, for they are cut whole"
        if multiple == ROW or name == "kv_group_ratio" and _by_rows(before):
            why += f"; K-quants need rows of {ROW}"
        found.append(f"{name} {wanted:g} became {share:.3f}: {why}")
    return found


ROW = 256  # values in a block of a K-quant: a row that is no multiple gets a larger type
_LONG = 1024  # values along an axis from which on steps of 256 are fine enough
_TELLS_APART = 0.005


def _multiple(shape: ModelShape, size: int) -> int:
    """The step in which `size` values of an axis are cut in a model of this shape."""
    if size >= _LONG and shape.hidden % ROW == 0:
        return ROW
    return 32 if size >= 64 else 8


def _by_rows(shape: ModelShape) -> bool:
    """Whether heads * head_dim is a row of K-quants that should stay one."""
    width = shape.heads * shape.head_dim
    return width % ROW == 0 and _multiple(shape, width) == ROW


def steps(before: ModelShape, after: ModelShape) -> list[ModelShape]:
    """Shapes on the way from `before` to `after` in neurons and groups, the last one `after`.

    None cuts more than about a third of what the one before left, the last excepted where the
    rounding allows nothing in between: a model that is cut in steps, with its activations taken
    again each time, ends better than one cut at once.
    """
    share = min(after.ffn / before.ffn, after.kv_heads / before.kv_heads)
    count = max(1, math.ceil(math.log(share) / math.log(1 - LARGEST_STEP) - 1e-6))
    counts = _divisors(before, after)
    way = []
    for step in range(1, count + 1):
        part = step / count
        multiple = _multiple(after, before.ffn)
        ffn = round(before.ffn * (after.ffn / before.ffn) ** part / multiple) * multiple
        wanted = before.kv_heads * (after.kv_heads / before.kv_heads) ** part
        groups = min(counts, key=lambda count, wanted=wanted: abs(count - wanted))
        way.append(with_groups(replace(after, ffn=min(before.ffn, max(ffn, after.ffn))), groups))
    way[-1] = after
    return [shape for old, shape in zip([before, *way], way, strict=False) if shape != old]


def _divisors(before: ModelShape, after: ModelShape) -> list[int]:
    """Numbers of groups on the way; where the last one's heads divide the hidden size, all do."""
    every = range(after.kv_heads, before.kv_heads + 1)
    per_group = before.heads // before.kv_heads
    return [n for n in every if after.hidden % after.heads or after.hidden % (n * per_group) == 0]


def _left(axis: str, size: int, ratio: float, multiple: int) -> int:
    """size * (1 - ratio) to the nearest multiple, at least one; SettingsError if that cuts none."""
    if ratio == 0:
        return size
    left = max(1, math.floor(size * (1 - ratio) / multiple + 0.5)) * multiple
    if 0 < ratio < 1 and left < size:
        return left
    largest = (size - 1) // multiple * multiple
    if not largest:
        raise InputError(
            f"{size} {_WORDS[axis]} are too few to cut",
            f"the size left must be a multiple of {multiple}",
            "prune a larger model, or leave this axis alone",
        )
    what = "nothing" if ratio >= 1 else f"all of {size} {_WORDS[axis]}"
    raise SettingsError(
        f"pruning.{axis}_ratio: {ratio:g} leaves {what}",
        f"the size left is rounded to a multiple of {multiple}, which GGUF's smaller types need",
        f"use a share such as {math.ceil(100 * (1 - largest / size)) / 100:g}",
    )


_WORDS = {"ffn": "neurons", "hidden": "hidden channels"}


def _group_counts(shape: ModelShape) -> list[int]:
    """Numbers of KV groups that may be left, fewest first, all of them at the end."""
    width = shape.head_dim * (shape.heads // shape.kv_heads)
    every = range(1, shape.kv_heads)
    fitting = [count for count in every if count * width % ROW == 0]
    return [*(fitting if fitting and _by_rows(shape) else every), shape.kv_heads]


def _groups_left(shape: ModelShape, ratio: float) -> int:
    if ratio == 0:
        return shape.kv_heads
    *fewer, _ = _group_counts(shape)
    if not fewer:
        raise SettingsError(
            f"pruning.kv_group_ratio: {ratio:g}, but the model has one KV group",
            "heads are cut in whole KV groups, and one must stay",
            "set it to 0",
        )
    wanted = shape.kv_heads * (1 - ratio)
    left = min([*fewer, shape.kv_heads], key=lambda count: (abs(count - wanted), count))
    if ratio >= 1 or left == shape.kv_heads:
        raise SettingsError(
            f"pruning.kv_group_ratio: {ratio:g} leaves {'none' if ratio >= 1 else 'all'} "
            f"of {shape.kv_heads} KV groups",
            "groups are cut whole, and where it was one heads * head_dim stays a multiple of 256",
            f"use a share such as {1 - fewer[-1] / shape.kv_heads:.3g}",
        )
    return left


def _layers_left(shape: ModelShape, ratio: float) -> int:
    left = max(1, math.floor(shape.layers * (1 - ratio) + 0.5))
    if ratio == 0 or (ratio < 1 and left < shape.layers):
        return left
    raise SettingsError(
        f"pruning.layer_ratio: {ratio:g} leaves {'none' if ratio >= 1 else 'all'} "
        f"of {shape.layers} layers",
        "layers are cut whole",
        f"use a share such as {math.ceil(100 / shape.layers) / 100:g}",
    )


def _solved(base: ModelShape, parameters: int) -> ModelShape:
    """Neurons and groups for a number of parameters, by the rule in `smaller`."""
    multiple = _multiple(base, base.ffn)
    counts = _group_counts(base)
    # Shares are equal to within one step of each: KV groups may come in twos, or be four in all.
    slack = (counts[-1] - counts[-2] if len(counts) > 1 else 1) / base.kv_heads
    slack += multiple / base.ffn
    sizes = [*range(multiple, base.ffn, multiple), base.ffn]
    found = [
        with_groups(replace(base, ffn=ffn), groups)
        for ffn in sizes
        for groups in counts
        if abs(ffn / base.ffn - groups / base.kv_heads) <= slack
    ]
    best = min(found, key=lambda s: (abs(s.parameters - parameters), -s.ffn))
    fewest, most = min(s.parameters for s in found), base.parameters
    if not fewest <= parameters < most:
        raise SettingsError(
            f"pruning.target_params: {parameters:,} cannot be reached",
            f"FFN neurons and KV groups allow {fewest:,} to {most:,} parameters",
            "choose a number between, or cut --layer-ratio or --hidden-ratio as well",
        )
    return best
