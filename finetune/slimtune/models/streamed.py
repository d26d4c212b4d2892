"""A model whose frozen weights stay in their files: layers come one after another, both ways.

    forward:   open layer i, y = f(x); kept are x, the state of the random numbers, one product
    backward:  open layer i, y = f(x) again with a graph, gradients of x and of the adapters

transformers' own modules, computed as those of a model in memory are, bit for bit: `read_ahead`
puts each layer's weights into its parameters for as long as it computes. The rows of the embedding
are looked up in the file, and the output layer comes like a layer. What is trained stays in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slimtune.errors import InputError
from slimtune.machine.process import return_free_blocks
from slimtune.models import mixed
from slimtune.models.compute import Compute
from slimtune.models.family import place
from slimtune.models.headers import TensorInfo, read_tensor
from slimtune.models.kept import Kept, Places
from slimtune.models.memory import available_memory
from slimtune.models.read_ahead import Part, ReadAhead, placeholder
from slimtune.models.weights import EMBEDDING, OUTPUT, Checkpoint, not_finite

_KEPT = 0.8  # of the free RAM beside a GPU: layers that have been read stay there


def open_streamed(checkpoint: Checkpoint, compute: Compute) -> PreTrainedModel:
    """The model of a folder in evaluation mode, its weights left where they are.

    Raises InputError where the files lack a weight of its config, or hold one of another shape; for
    NaN and infinity when the weight is first read.
    """
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    options = {"attn_implementation": compute.attention} if compute.attention else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=compute.weights, trust_remote_code=False, **options
        )
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(model.config).to(compute.device)
    parts = _parts(model, checkpoint, compute.device)
    kept = int(_KEPT * available_memory()) if compute.device.type == "cuda" else 0
    layers = [parts[i] for i in range(len(decoder.layers))]
    reader = ReadAhead(checkpoint.folder, layers, parts[None], compute.device, kept)
    places = Places()
    for index, layer in enumerate(decoder.layers):
        layer.forward = partial(_streamed, layer, layer.forward, reader, places, index)
    decoder.register_forward_hook(partial(_open_output, reader))
    embedding = model.get_input_embeddings()
    embedding.forward = partial(_looked_up, embedding, checkpoint, _embedding_of(checkpoint))
    return model.eval()


def reader_of(model: nn.Module) -> ReadAhead | None:
    """What reads the layers of a streamed model, under any wrapper; None of a model in memory."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func is _streamed:
            return forward.args[2]
    return None


def _parts(
    model: PreTrainedModel, checkpoint: Checkpoint, device: torch.device
) -> dict[int | None, Part]:
    """The weights of each layer by its number, those of the output layer under None; their
    parameters are placeholders then. What belongs to neither is small, and read."""
    tensors, parts = checkpoint.tensors, {}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for path, parameter in list(model.named_parameters(remove_duplicate=False)):
        *_, last = path.split(".")
        module = model.get_submodule(path.removesuffix(f".{last}"))
        info = _info(checkpoint, path, tuple(parameter.shape))
        layer, _ = place(path)
        waits = placeholder(parameter.shape, parameter.dtype, device)
        own = nn.Parameter(waits, requires_grad=False)
        if module is head or layer is not None:
            parts.setdefault(layer, []).append((path, info, own))
        elif module is not embedding:
            own.data = read_tensor(tensors[path]).to(device, parameter.dtype)
            if not own.data.isfinite().all():
                raise not_finite(checkpoint.folder, path)
        setattr(module, last, own)
    if model.config.tie_word_embeddings:
        embedding.weight = head.weight  # one parameter, as in memory; the embedding reads its file
    return parts


def _info(checkpoint: Checkpoint, path: str, shape: tuple[int, ...]) -> TensorInfo:
    """Where the weight lies. A tied one may be stored under either name, or both."""
    tensors, other = checkpoint.tensors, {EMBEDDING: OUTPUT, OUTPUT: EMBEDDING}.get(path)
    found = tensors.get(path)
    if found is None and other and checkpoint.tied:
        found = tensors.get(other)
    if found is None:
        raise InputError(
            f"{checkpoint.folder}: {path} is missing",
            "its config.json describes it, its safetensors files do not hold it",
            "copy the model again, or run the stage that wrote it again",
        )
    if found.shape != shape:
        raise InputError(
            f"{checkpoint.folder}: {path} is {found.shape}, config.json says {shape}",
            "one of the two belongs to another model",
            "copy config.json and the weights again, both from the original model",
        )
    return found


def _embedding_of(checkpoint: Checkpoint) -> TensorInfo:
    return checkpoint.tensors.get(EMBEDDING, checkpoint.tensors.get(OUTPUT))


def _looked_up(
    embedding: nn.Embedding, checkpoint: Checkpoint, info: TensorInfo, ids: torch.Tensor
) -> torch.Tensor:
    """The rows of `ids`, each read once."""
    wanted, places = ids.cpu().unique(return_inverse=True)
    rows = torch.cat([read_tensor(info, one, one + 1) for one in wanted.tolist()])
    if not rows.isfinite().all():
        raise not_finite(checkpoint.folder, EMBEDDING)
    return rows.to(ids.device, embedding.weight.dtype)[places.to(ids.device)]


def _open_output(reader: ReadAhead, *_: object) -> None:
    """After the last layer: the output layer, and then the layer that comes next. What the layers
    computed with goes back first: with the logits, the output layer needs as much."""
    return_free_blocks()
    reader.open(reader.output, then=reader.output - 1 if torch.is_grad_enabled() else 0)


def _streamed(
    layer: nn.Module,
    usual: Callable[..., torch.Tensor],
    reader: ReadAhead,
    places: Places,
    index: int,
    hidden: torch.Tensor,
    **given: Any,
) -> torch.Tensor:
    """A decoder layer's forward, its weights in memory only meanwhile."""
    run = partial(usual, **given)
    if not torch.is_grad_enabled():
        reader.open(index, then=index + 1)
        return run(hidden)
    trained = [one for one in layer.parameters() if one.requires_grad]
    return _Layer.apply(hidden, run, layer, reader, places, index, *trained)


class _Layer(torch.autograd.Function):
    """y = f(x) whose weights are read anew for the backward pass; keeps x, what f drew by, and the
    product of its attention's output layer where it is in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        run: Callable[[torch.Tensor], torch.Tensor],
        layer: nn.Module,
        reader: ReadAhead,
        places: Places,
        index: int,
        *trained: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(*trained)
        ctx.kept = places.keep(hidden)
        ctx.run, ctx.layer, ctx.reader, ctx.index = run, layer, reader, index
        ctx.conditions = _Conditions(hidden.device)
        reader.open(index, then=index + 1)
        with _keeping(layer.self_attn.o_proj, places) as ctx.products:
            return run(hidden)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        trained = ctx.saved_tensors
        ctx.reader.open(ctx.index, then=max(0, ctx.index - 1))
        inputs = ctx.kept.data.detach().requires_grad_(ctx.needs_input_grad[0])
        last = ctx.layer.mlp.down_proj  # all that is done with what it gives is to add it
        product = ctx.products[0].data if ctx.products else None
        known = mixed.result_known(ctx.layer.self_attn.o_proj, product)
        with torch.enable_grad(), ctx.conditions.again(), mixed.result_unread(last), known:
            output = ctx.run(inputs)
        wanted = [one for one in (inputs, *trained) if one.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, upstream, allow_unused=True))
        first = next(found) if inputs.requires_grad else None
        for one in (ctx.kept, *ctx.products):
            one.give_back()
        return first, None, None, None, None, None, *found


@contextmanager
def _keeping(module: nn.Module, places: Places) -> Iterator[list[Kept]]:
    """Within, what an adapted `module` gives is kept, a tenth of what a layer multiplies; of any
    other nothing is."""
    kept: list[Kept] = []
    if not mixed.gives_sums(module):
        yield kept
        return
    hook = module.register_forward_hook(lambda _, __, output: kept.append(places.keep(output)))
    try:
        yield kept
    finally:
        hook.remove()


class _Conditions:
    """What a forward depends on besides its inputs: random numbers, and autocast on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, kind = device, device.type
        self._random = torch.get_rng_state()
        self._on_gpu = torch.cuda.get_rng_state(device) if kind == "cuda" else None
        self._cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within, as they were; afterwards as before."""
        enabled, dtype = self._cast
        gpus = [self._device] if self._on_gpu is not None else []
        with (
            torch.random.fork_rng(devices=gpus),
            torch.autocast(self._device.type, dtype=dtype, enabled=enabled),
        ):
            torch.set_rng_state(self._random)
            if self._on_gpu is not None:
                torch.cuda.set_rng_state(self._on_gpu, self._device)
            yield
