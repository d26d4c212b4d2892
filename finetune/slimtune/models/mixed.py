"""A model that multiplies in bfloat16 on a CPU and keeps in float32 what rounding would spoil.

    h in float32:  h = h + o(attention(q(n), k(n), v(n))),   n = norm(h) in bfloat16
                   h = h + down(silu(gate(n)) * up(n))

Frozen weights and what is multiplied with them are bfloat16; the residual stream, norms, softmax,
loss, adapters, their gradients and moments are float32. Each function below says what it keeps for
the backward pass: little is, and in bfloat16, because that is most of what training holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear as LoraLinear

HALF = torch.bfloat16


def is_mixed(weight: torch.Tensor) -> bool:
    """Whether what multiplies with `weight` is made for here: bfloat16 on a CPU, and whole."""
    whole = type(weight) in (torch.Tensor, nn.Parameter)  # FSDP's parts have a type of their own
    return whole and weight.device.type == "cpu" and weight.dtype == HALF


def numbers_of(model: PreTrainedModel) -> torch.dtype:
    """What a model's products are as exact as: the type of its weights where it is not mixed."""
    return getattr(model, "multiplies_in", model.dtype)


def prepare(model: PreTrainedModel) -> None:
    """Has a bfloat16 model on a CPU compute as above, in place; its weights stay as they are."""
    model.multiplies_in = HALF
    decoder = model.get_decoder()
    # Not on the embedding: one that grows with an adapter's vocabulary is another module.
    decoder.layers[0].register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
    decoder.rotary_emb.register_forward_hook(
        lambda _, __, both: tuple(one.to(HALF) for one in both)
    )
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.forward = partial(_normed, module)
        elif name.endswith(".mlp") and model.config.hidden_act == "silu":
            module.forward = partial(_fed_forward, module)


def learn(model: PreTrainedModel) -> None:
    """Has a float32 model on a CPU, all of whose weights learn, compute as above, in place.

    The weights stay float32, and so do their gradients and moments: only what a layer multiplies
    with is rounded, anew each time, as in automatic mixed precision (arXiv:1710.03740).
    """
    prepare(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_multiplied, module)


def adapt(model: "PeftModel") -> None:
    """Has plain adapters on bfloat16 weights multiply with them; others are left to peft.

    Modules that are trained whole beside them become float32: in bfloat16 small steps would be
    rounded away.
    """
    from peft.tuners.lora import Linear  # seconds, and who has adapters has paid them

    for module in list(model.modules()):
        if isinstance(module, Linear) and _plain(module):
            module.forward = partial(_adapted, module, module.forward)
        own = [one for one in module.parameters(recurse=False) if one.requires_grad]
        if any(map(is_mixed, own)):
            _learn_in_float32(module)


def _learn_in_float32(module: nn.Module) -> None:
    module.float()
    if isinstance(module, nn.Linear):
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        module.register_forward_hook(lambda _, __, output: output.to(HALF))


def _plain(module: "LoraLinear") -> bool:
    base, names = module.base_layer, module.active_adapters
    if type(base) is not nn.Linear or not is_mixed(base.weight) or len(names) != 1:
        return False
    if any(one.requires_grad for one in base.parameters()):
        return False  # as a bias beside adapters does: its layer learns in float32
    return names[0] not in module.lora_variant and not module.lora_bias[names[0]]


def _normed(norm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return _Norm.apply(hidden, norm.weight, norm.variance_epsilon)


def _multiplied(linear: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return _Product.apply(inputs.to(HALF), linear.weight, linear.bias)


def _fed_forward(mlp: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return mlp.down_proj(_Gated.apply(mlp.gate_proj(hidden), mlp.up_proj(hidden)))


@contextmanager
def result_unread(module: nn.Module) -> Iterator[None]:
    """Within, nobody reads what `module` gives: an adapted one gives zeros, and keeps what its
    backward pass needs. A layer that is computed once more for that ends in such a product, a
    quarter of what it multiplies."""
    with _instead(module, unread=True):
        yield


@contextmanager
def result_known(module: nn.Module, result: torch.Tensor | None) -> Iterator[None]:
    """Within, an adapted `module` gives a copy of `result` in place of its product, where there is
    one, and keeps what its backward pass needs."""
    with _instead(module, known=result) if result is not None else nullcontext():
        yield


def gives_sums(module: nn.Module) -> bool:
    """Whether `module` is an adapted one whose result may be known or unread."""
    usual = vars(module).get("forward")
    return isinstance(usual, partial) and usual.func is _adapted


@contextmanager
def _instead(module: nn.Module, **given: Any) -> Iterator[None]:
    if not gives_sums(module):
        yield
        return
    usual = module.forward
    module.forward = partial(usual, **given)
    try:
        yield
    finally:
        module.forward = usual


def _adapted(
    module: "LoraLinear",
    usual: Callable[..., torch.Tensor],
    inputs: torch.Tensor,
    *,
    unread: bool = False,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    # Weights that are made float32 for a while, as to prove a merge, are peft's matter.
    if module.disable_adapters or module.merged or not is_mixed(module.base_layer.weight):
        return usual(inputs)
    (name,) = module.active_adapters
    inputs = inputs.to(HALF)
    low = F.linear(module.lora_dropout[name](inputs), module.lora_A[name].weight.to(HALF))
    up = (module.lora_B[name].weight * module.scaling[name]).to(HALF)
    weight, bias = module.base_layer.weight, module.base_layer.bias
    return _Sum.apply(inputs, weight, bias, low, up, unread, known)


class _Norm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + eps), in float32, to bfloat16; keeps x in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = scale.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x.to(HALF), scale, weight)
        ctx.kind = x.dtype
        return (wide * scale).mul_(weight).to(HALF)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        # dx = s (g w - n mean(g w n)) and dw = sum(g n), with n = s x
        x, scale, weight = ctx.saved_tensors
        normed, to_weight = x.float().mul_(scale), None
        if ctx.needs_input_grad[1]:
            to_weight = (upstream * normed).flatten(0, -2).sum(0).to(weight.dtype)
        gradient = upstream.float().mul_(weight)
        along = (gradient * normed).mean(-1, keepdim=True)
        gradient.addcmul_(normed, along, value=-1).mul_(scale)
        return gradient.to(ctx.kind), to_weight, None


class _Gated(torch.autograd.Function):
    """y = silu(gate) * up; keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(upstream * up, gate)
        return to_gate, F.silu(gate).mul_(upstream)


class _Product(torch.autograd.Function):
    """y = x W^T + b in bfloat16 for W and b that learn in float32; keeps x, and rounds W again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.to(HALF), None if bias is None else bias.to(HALF))

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        rows = upstream.flatten(0, -2)
        to_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype)
        to_bias = rows.float().sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return upstream @ weight.to(HALF), to_weight, to_bias


class _Sum(torch.autograd.Function):
    """y = x W^T + low B^T + b with one rounding, W and b frozen; keeps low.

    An adapter's part is small. Added to a product that was rounded already, half of it and more is
    rounded away at that size: the loss then fell 40 % less at a first step. So it comes first, and
    the large product is added to it before anything is rounded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        low: torch.Tensor,
        up: torch.Tensor,
        unread: bool,
        known: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, low, up)
        if unread:
            return x.new_zeros(*x.shape[:-1], len(weight))
        if known is not None:
            return known.clone()
        total = (low.flatten(0, -2) @ up.T).addmm_(x.flatten(0, -2), weight.T)
        if bias is not None:
            total.add_(bias)
        return total.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        weight, low, up = ctx.saved_tensors
        to_up = (low.flatten(0, -2).T @ upstream.flatten(0, -2)).T
        return upstream @ weight, None, None, upstream @ up, to_up, None, None
