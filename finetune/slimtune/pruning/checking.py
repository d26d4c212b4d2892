"""Does the folder hold the model that was meant? Loaded back, run, compared."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from slimtune.console import QualityError
from slimtune.models.checkpoints import Checkpoint
from slimtune.models.memory import Shape
from slimtune.pruning.anatomy import Keep, channels
from slimtune.pruning.stack import Batch, Stack, input_hook

_WHOLE = 30_000_000  # bytes of weights up to which transformers loads the folder whole
_TOLERANCE = 1e-2  # of the largest logit; rounding is 1e-6 in float32, 3e-3 in bfloat16


@torch.inference_mode()
def masked(source: Path, keep: Keep, ids: torch.Tensor) -> torch.Tensor:
    """Logits (rows, length, vocabulary) of the dense model with all units but `keep`'s at zero.

    What a cut must come to where nothing was refitted: an independent way to the same logits.
    """
    checkpoint = Checkpoint(source)
    shape, stack = Shape.of(checkpoint.config), Stack.of(source)
    hidden = stack.embed(ids)
    for index in keep.layers:
        layer = stack.streamed_layer(index)
        kept = {layer.mlp.down_proj: keep.ffn.get(index)}
        if index in keep.groups:
            width = shape.head_dim * (shape.heads // shape.kv_heads)
            kept[layer.self_attn.o_proj] = channels(keep.groups[index], width)
        for module, some in kept.items():
            if some is not None:
                input_hook(module, lambda inputs, some=some: _silence(inputs, some))
        hidden = stack.run(layer, hidden)
    return logits_of(stack, hidden)


@torch.inference_mode()
def logits_of(stack: Stack, hidden: torch.Tensor) -> torch.Tensor:
    """Logits from the hidden states after the last layer."""
    states = stack.norm()(hidden)
    return torch.cat([states @ rows.T for _, rows in stack.head()], dim=-1)


@torch.inference_mode()
def loaded_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the folder as it is now: by transformers, layer by layer where it is large."""
    if Checkpoint(folder).bytes <= _WHOLE:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True
        )
        return model.eval()(ids).logits
    stack = Stack.of(folder)
    hidden = stack.embed(ids)
    for index in range(stack.layers):
        hidden = stack.run(stack.streamed_layer(index), hidden)
    return logits_of(stack, hidden)


def require_equal(folder: Path, ids: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of logits, as a share of the largest; QualityError beyond rounding."""
    found = loaded_logits(folder, ids)
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= _TOLERANCE:
        raise QualityError(
            f"{folder}: the saved model does not answer as the pruned one did",
            f"its logits differ by {difference:.2g} of the largest",
            "this is a bug of SlimTune: please report it with the model's config.json",
        )
    return difference


def few_ids(vocabulary: int, seed: int) -> torch.Tensor:
    """Two rows of 16 random ids."""
    return torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(seed))


def first_row(batch: Batch) -> torch.Tensor:
    """The ids of a batch's first row, without its padding."""
    return batch.ids[:1, : int(batch.real[0].sum())]


def _silence(inputs: torch.Tensor, kept: torch.Tensor) -> None:
    silent = torch.ones(inputs.shape[-1], dtype=torch.bool)
    silent[kept] = False
    inputs[..., silent] = 0
