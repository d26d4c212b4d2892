"""An adapter on a model through peft, which must have a place for each of its tensors.

`attach` is what evaluation, the chat and a merge in memory load; `attach_to_nothing` has the same
layers without a base: what peft makes of an adapter, in the memory of the adapter alone.
"""

import warnings

import torch
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slimtune.errors import InputError, SlimTuneError
from slimtune.machine.refusals import refusal_of
from slimtune.models import mixed
from slimtune.models.adapters import Adapter
from slimtune.models.weights import EMBEDDING, OUTPUT, Checkpoint


def attach(model: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """`model` with the adapter on it, its vocabulary as large as the adapter's.

    Raises InputError for an adapter that peft cannot load onto it, and for one of which a tensor
    would be left over or is missing: peft only warns, and goes on without it.
    """
    return _attached(model, adapter, None)


def attach_to_nothing(base: Checkpoint, adapter: Adapter) -> PeftModel:
    """The adapter on a model of the base's shape in float32 whose weights are one zero each.

    Only for an adapter whose start left the base alone: none is made here.
    """
    config = AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zero = torch.zeros(()).expand(parameter.shape)  # takes four bytes, whatever the shape
            setattr(module, name, torch.nn.Parameter(zero, requires_grad=False))
    for name in adapter.replaced:  # those are written to
        _make_real(model, EMBEDDING if base.tied and name == OUTPUT else name)
    model.tie_weights()
    settings = LoraConfig.from_pretrained(str(adapter.folder))
    settings.init_lora_weights = True  # A and B are overwritten: no start has to be computed
    return _attached(model, adapter, settings)


def _make_real(model: PreTrainedModel, name: str) -> None:
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    shape = getattr(module, last).shape
    setattr(module, last, torch.nn.Parameter(torch.zeros(shape), requires_grad=False))


def _attached(model: PreTrainedModel, adapter: Adapter, settings: LoraConfig | None) -> PeftModel:
    rows = adapter.vocabulary
    folder = str(adapter.folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is left over: told below, as an error
            if rows and rows != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(rows, mean_resizing=False)
            adapted = PeftModel.from_pretrained(model, folder, config=settings)
            result = set_peft_model_state_dict(adapted, load_peft_weights(folder, device="cpu"))
    except SlimTuneError:
        raise
    except (ImportError, ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        if refusal_of(error):
            raise
        raise InputError(
            f"{adapter.folder}: peft cannot load this adapter onto its base",
            str(error).splitlines()[0],
            "copy the adapter's files again, or merge it with the program that wrote it",
        ) from error
    _require_all_used(adapter, result.unexpected_keys)
    _require_all_there(adapter, [name for name in result.missing_keys if ".lora_" in name])
    adapted.requires_grad_(False)  # of an adapter made for inference peft leaves the base as it is
    mixed.adapt(adapted)
    return adapted.eval()


def _require_all_used(adapter: Adapter, unexpected: list[str]) -> None:
    left = [name for name in unexpected if not adapter.is_duplicate(name)]
    if left:
        raise InputError(
            f"{adapter.folder}: nothing uses {left[0]}",
            f"peft has no place for {len(left)} of {len(adapter.tensors)} adapter tensors in this "
            "model, as adapter_config.json says where they go",
            f"give the model it was trained on as --base-model: {adapter.base}",
        )


def _require_all_there(adapter: Adapter, missing: list[str]) -> None:
    if missing:
        raise InputError(
            f"{adapter.folder}: {len(missing)} tensors missing, first {missing[0]}",
            "adapter_config.json names their modules, adapter_model.safetensors does not hold them",
            "copy the adapter's files again, or train it again",
        )
