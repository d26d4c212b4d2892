"""How much memory a stage will need, from config.json alone, before torch is even imported.

Parameters are counted exactly from the shapes; activations are what autograd keeps for the backward
pass, measured once for each kind of training (the tests measure it again). All sizes are in bytes,
all figures the worst case: every row as long as `max_length`.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from slimtune.config.catalogues import facts
from slimtune.models.family import Axis
from slimtune.models.model_shape import ModelShape
from slimtune.settings.flags import less_memory

Workload = Literal["stream", "inference", "lora", "mixed", "full"]

# Bytes kept per token and layer for each value along an axis, by what trains and by the size of a
# number. 16-bit training of adapters keeps float32 copies: peft's adapters are float32. `mixed` is
# that of a CPU (models.mixed), of adapters and of all weights, which keeps none.
_ACTIVATIONS: dict[tuple[str, int], dict[Axis, int]] = {
    ("lora", 4): {"hidden": 16, "query": 8, "kv": 8, "ffn": 16},
    ("lora", 2): {"hidden": 28, "query": 8, "kv": 4, "ffn": 10},
    ("mixed", 2): {"hidden": 8, "query": 4, "kv": 4, "ffn": 6},
    ("full", 4): {"hidden": 24, "query": 8, "kv": 8, "ffn": 16},
    ("full", 2): {"hidden": 16, "query": 4, "kv": 4, "ffn": 8},
}
_DROPOUT: dict[tuple[str, int], dict[Axis, int]] = {
    ("lora", 4): {"hidden": 32, "query": 8, "ffn": 4},
    ("lora", 2): {"hidden": 20, "query": 4, "ffn": 4},
    ("mixed", 2): {"hidden": 16, "query": 4, "ffn": 2},
}
# For each value of a query or key that goes through a norm of its own.
_NORMED = {("lora", 4): 4, ("lora", 2): 4, ("mixed", 2): 2, ("full", 4): 8, ("full", 2): 6}
# nf4: half a byte, and one scale per 64 weights that is itself kept in 8 bits (arXiv:2305.14314).
_QUANTIZED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# Bytes an optimizer keeps for each trained weight.
OPTIMIZERS: dict[str, float] = facts("optimizers", "bytes")
# Positions whose logits the loss has at once (training.losses.CHUNK); logits, their gradient, and
# one more while the head multiplies.
_LOGIT_ROWS = {"cpu": 128, "cuda": 1024}
_LOGITS_ALIVE = 3
_RUNTIME = 500_000_000  # Python, torch, transformers, peft: measured 476 MB
# Of a training run: on a CPU also the Trainer, and the compute kernels' own memory;
# on a GPU the CUDA context and cuBLAS's workspace, while Python and its libraries are in RAM.
_TRAINING = {"cpu": 430_000_000, "cuda": 600_000_000}
# On a CPU a step's blocks come from malloc, which (glibc 2.36) cannot give a freed aligned block to
# a request of the same size: the first step leaves holes as large as the activations. Gradients and
# moments, made later, move into them. Measured on three sizes, 700 MB to 4.5 GB.
# With bfloat16 products three runs took 7 to 11 % less than this says, 0.96 to 1.58 GB.
_TRANSIENT = {"cpu": 1.35, "cuda": 1.1}
_HOLES = {"cpu": 0.85, "cuda": 0.0}
# Of a layer that learns through the types of a file, for each parameter: its own weights, those it
# began with, those it is rounded to, their codes, bytes now and before, and the ends of the scales.
_OF_A_LAYER = 15
_STREAMING = 350_000_000  # merge and pruning at 1.1 B parameters: measured 301 and 342 MB


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what needs them; `total` is the predicted peak."""

    weights: int = 0
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    heap: int = 0
    runtime: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = [f"{name} {gigabytes(size)}" for name, size in asdict(self).items() if size]
        return f"{gigabytes(self.total)} ({', '.join(parts)})"


def estimate_memory(
    config: dict,
    stage: Workload,
    *,
    itemsize: int = 4,
    quantization: str = "none",
    batch_size: int = 1,
    max_length: int = 512,
) -> MemoryEstimate:
    """Peak memory of a stage that does not train, for the model of `config` (a config.json).

    stream (merge, magnitude pruning, GGUF): the same for every model.
    inference: weights + KV cache 2 * layers * kv_width * tokens + one row of logits a sequence.

    `itemsize`: bytes of a number computed with, 4 (float32) or 2; `quantization`: how linear
    layers are kept, none, nf4 or int8.
    """
    if stage == "stream":
        return MemoryEstimate(runtime=_STREAMING)
    shape = ModelShape.of(config)
    return MemoryEstimate(
        weights=weight_bytes(shape, itemsize, quantization),
        cache=2 * shape.layers * shape.kv_width * batch_size * max_length * itemsize,
        logits=batch_size * shape.vocabulary * 4,
        runtime=_RUNTIME,
    )


@dataclass(frozen=True)
class Recipe:
    """What of a training run memory depends on, besides the shapes and the tokens of a batch.

    `trained` are the parameters of the adapter (and of modules trained whole); None: all weights
    are trained, and are float32 whatever they are multiplied in. `dropout` is the adapter's.
    `optimizer` is a name of OPTIMIZERS; `device` cpu or cuda. `streamed`: frozen layers come from
    their files one after another, and each keeps what goes in, and one product.
    """

    trained: int | None = None
    itemsize: int = 4
    quantization: str = "none"
    dropout: float = 0.0
    activation_checkpointing: bool = False
    optimizer: str = "adamw_torch"
    device: str = "cpu"
    streamed: bool = False


def training(config: dict, recipe: Recipe, tokens: int) -> MemoryEstimate:
    """Peak memory of training the model of `config` with `tokens` tokens in the largest batch.

    weights + adapter + gradients and the optimizer's state of what is trained + activations of
    all tokens + logits of one chunk of positions + what malloc cannot use again. With quantised
    layers everything else is float32, as peft prepares it.
    """
    shape = ModelShape.of(config)
    plain, whole = recipe.quantization == "none", recipe.trained is None
    mixed = recipe.device == "cpu" and recipe.itemsize == 2 and plain
    kept_in = recipe.itemsize if plain and not whole else 4
    weights = weight_bytes(shape, kept_in, recipe.quantization)
    if recipe.streamed:
        weights = streamed_bytes(shape, kept_in) + tokens * shape.hidden * kept_in
    trained = shape.parameters if recipe.trained is None else recipe.trained
    stage: Workload = "mixed" if mixed else "full" if whole else "lora"
    itemsize = 2 if mixed else kept_in
    layer = activation_bytes(shape, stage, itemsize, recipe.dropout)
    kept = shape.layers * layer
    if recipe.activation_checkpointing or recipe.streamed:
        product = 2 if mixed and recipe.streamed else 0  # of the attention's output layer
        kept = shape.layers * shape.hidden * ((4 if mixed else itemsize) + product) + layer
    kept += shape.hidden * itemsize  # the last norm
    chunk = min(tokens, _LOGIT_ROWS[recipe.device]) * shape.vocabulary * 4
    moments = round(OPTIMIZERS[recipe.optimizer] * trained)
    holes = round(_HOLES[recipe.device] * tokens * kept)
    return MemoryEstimate(
        weights=weights,
        adapter=0 if recipe.trained is None else 4 * trained,
        gradients=4 * trained,
        optimizer=moments,
        activations=round(_TRANSIENT[recipe.device] * tokens * kept),
        logits=_LOGITS_ALIVE * chunk,
        heap=max(0, holes - 4 * trained - moments),
        runtime=_TRAINING[recipe.device],
    )


def layer_by_layer(config: dict, tokens: int, longest: int) -> MemoryEstimate:
    """Peak memory of layers that learn one after another through the types of a file, float32.

    That of one layer with `tokens` tokens a step, or, where it is larger, of the search for what
    errors cost: the output matrix, and the logits of a row of `longest` tokens.
    """
    shape = ModelShape.of(config)
    layer = shape.layer_parameters
    kept = activation_bytes(shape, "full", 4, 0.0)
    learning = MemoryEstimate(
        weights=_OF_A_LAYER * layer,
        gradients=4 * layer,
        optimizer=8 * layer,
        activations=round(_TRANSIENT["cpu"] * max(tokens, longest) * kept),
        runtime=_TRAINING["cpu"],
    )
    search = MemoryEstimate(
        weights=4 * shape.vocabulary * shape.hidden,
        logits=_LOGITS_ALIVE * 4 * longest * shape.vocabulary,
        runtime=_TRAINING["cpu"],
    )
    return max(learning, search, key=lambda one: one.total)


def streamed_bytes(shape: ModelShape, itemsize: int) -> int:
    """The room of models.read_ahead: two layers, or the output layer where that is larger. Of parts
    that are used where they lie in the system's cache half of it is not this process's."""
    return max(2 * shape.layer_parameters, shape.vocabulary * shape.hidden) * itemsize


def weight_bytes(shape: ModelShape, itemsize: int, quantization: str) -> int:
    """parameters * itemsize; nf4 linear layers need 0.516 bytes a weight, int8 ones 1, instead."""
    if quantization == "none":
        return shape.parameters * itemsize
    rest = shape.parameters - shape.linear_parameters
    return rest * itemsize + round(shape.linear_parameters * _QUANTIZED[quantization])


def activation_bytes(shape: ModelShape, stage: Workload, itemsize: int, dropout: float) -> int:
    """What autograd keeps per token in one decoder layer."""
    kept = Counter(_ACTIVATIONS[stage, itemsize])
    if dropout and stage != "full":
        kept.update(_DROPOUT[stage, itemsize])
    for norm, axis in (("q_norm", "query"), ("k_norm", "kv")):
        if norm in shape.family.norms:
            kept[axis] += _NORMED[stage, itemsize]
    return sum(bytes_each * shape.sizes[axis] for axis, bytes_each in kept.items())


def available_memory(device: str = "cpu") -> int:
    """Bytes free for a new process: RAM within the container's limit, or the GPU's own memory."""
    if device == "cuda":
        import torch  # only a machine with a GPU pays for this import

        return torch.cuda.mem_get_info()[0]
    return min(psutil.virtual_memory().available, _container_memory(Path("/sys/fs/cgroup")))


RESERVE = 1.1  # an estimate fits where a tenth more would


def fits(needed: MemoryEstimate, available: int) -> bool:
    return needed.total * RESERVE <= available


def fit_verdict(needed: MemoryEstimate, available: int) -> str:
    """One line for --dry-run: the estimate, what is free, and whether it fits (10 % in reserve)."""
    answer = "fits" if fits(needed, available) else f"will NOT fit: {less_memory()}"
    return f"about {needed}; {gigabytes(available)} available: {answer}"


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _container_memory(cgroup: Path) -> int:
    """What a cgroup (v2) limit leaves, file cache not counted; practically infinite without one."""
    limit = cgroup / "memory.max"
    if not limit.is_file() or limit.read_text(encoding="ascii").strip() == "max":
        return 1 << 62
    used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    cache = dict(line.split() for line in lines).get("inactive_file", 0)
    return int(limit.read_text(encoding="ascii")) - used + int(cache)
