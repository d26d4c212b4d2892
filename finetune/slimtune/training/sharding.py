"""FSDP: every process holds a part of each weight, and they lend them to each other layer by layer.

transformers reads the parts from disk and its Trainer takes such a model as it is. Adapters are
whole in every process, and their gradients averaged: they are saved as always. Where all weights
learn, what a checkpoint holds is whole too, and shared out again by whoever goes on from it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from slimtune.config import Config
from slimtune.console import first_process, processes
from slimtune.errors import SettingsError
from slimtune.models.compute import choose_dtype

_A_DAY = timedelta(days=1)
_FSDP = "ACCELERATE_USE_FSDP"  # `accelerate launch` sets it for every process
# What else it may be told about FSDP, and the one answer that is kept to here.
_LAUNCH = {
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
_PART_BY_PART = ("adamw_torch", "sgd")  # update a part without knowing the others


def weight_parts() -> int:
    """In how many parts the weights lie: one a process where the launcher says FSDP, else one."""
    return processes() if os.environ.get(_FSDP) == "true" else 1


def joined(device: str) -> PartialState:
    """The processes of this launch, each waiting for what another has to do for up to a day."""
    # Unless told that it is for CPUs, accelerate takes each process for alone: nothing is sent,
    # nobody waited for.
    return PartialState(cpu=device == "cpu", timeout=_A_DAY)


def require_launch(device: str) -> None:
    """SettingsError for what a launcher's fsdp_config asks beyond sharing out the weights."""
    if weight_parts() == 1:
        return
    for name, kept in _LAUNCH.items():
        if os.environ.get(name, kept).lower() != kept:
            raise SettingsError(
                f"accelerate launch, fsdp_config: {name.lower()} is not {kept}",
                "the weights are shared out as they are read (FSDP2), and it would have no effect",
                "write it as in finetune/launch/fsdp_gpus.yaml",
            )
    if device == "cpu" and torch.accelerator.is_available():
        raise SettingsError(
            "model.device: cpu under FSDP, on a machine with GPUs",
            "the weights would be shared out to the GPUs all the same",
            "hide them (CUDA_VISIBLE_DEVICES=), or let them work (--device auto)",
        )


def require_supported(config: Config, *, whole: bool, quantized: bool = False) -> None:
    """SettingsError for what cannot be done to weights that lie in parts; `whole`: all of them
    learn, not an adapter."""
    if weight_parts() == 1:
        return
    training, lora = config.training, config.lora
    refused = {
        f"model.quantization: {config.model.quantization}": quantized,
        "model.dtype: float16": whole and _numbers(config) == torch.float16,
        f"training.optimizer: {training.optimizer}": whole
        and training.optimizer not in _PART_BY_PART,
        f"lora.initialisation: {lora.initialisation}": not whole
        and lora.initialisation != "default",
        "lora.dora": not whole and lora.dora,
        "lora.modules_to_save": not whole and bool(lora.modules_to_save),
        "lora.target_modules: lm_head": not whole
        and any(name.endswith("lm_head") for name in lora.target_modules),
    }
    for setting, asked in refused.items():
        if asked:
            raise SettingsError(
                f"{setting} under FSDP",
                "it needs whole weights at a moment when every process holds only a part of them",
                "leave it out, or start with finetune/launch/ddp_gpus.yaml: there each process "
                "holds the whole model",
            )


def _numbers(config: Config) -> torch.dtype:
    return choose_dtype(config.model.device, config.model.dtype)


@contextmanager
def done_already() -> Iterator[None]:
    """Within, accelerate knows nothing of FSDP: on GPUs it would share out what is shared out."""
    asked = os.environ.pop(_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_FSDP] = asked


def reshard(model: nn.Module) -> None:
    """Every process holds only its parts again: the head's weights stay whole after a forward.

    Until then they are other tensors than those that learn.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def stored_as_one(model: PreTrainedModel | PeftModel) -> None:
    """From now on `model` is written as by one process, and takes what one process wrote."""
    model.register_state_dict_post_hook(_leave_out_tied)
    model.register_load_state_dict_pre_hook(_share_out)


def _leave_out_tied(model: nn.Module, state: dict[str, torch.Tensor], *_: object) -> None:
    """Each put together by itself, tied weights are no longer seen to be one."""
    for name in model.all_tied_weights_keys:
        state.pop(name, None)


def _share_out(model: nn.Module, state: dict[str, torch.Tensor], *_: object) -> None:
    reshard(model)
    parts = dict(model.named_parameters(remove_duplicate=False))
    state.update({name: _part(one, parts[name]) for name, one in state.items() if name in parts})


def _part(whole: Any, like: torch.Tensor) -> Any:
    """This process's part of a tensor, where `like` lies in parts and has the same shape."""
    if not isinstance(like, DTensor) or not torch.is_tensor(whole) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gather_parts(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with all its parts put together, in the first process; every process must call."""
    return tree_map_only(DTensor, _gather, state)


def _gather(part: DTensor) -> torch.Tensor | None:
    gathered = part.full_tensor()
    return gathered.cpu() if first_process() else None


def scatter_optimizer_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The state of an optimizer as it was saved, whole, as that of the parts that are here."""
    here = [one for group in optimizer.param_groups for one in group["params"]]
    names = [name for group in state["param_groups"] for name in group["params"]]
    shared = {
        name: {what: _part(value, one) for what, value in state["state"].get(name, {}).items()}
        for name, one in zip(names, here, strict=True)
    }
    return state | {"state": shared}
