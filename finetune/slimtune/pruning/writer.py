"""Writes the smaller checkpoint a few rows at a time, and proves that it is the model meant.

Rows are read, cut along both axes and written, in an order of one's choice; no tensor is ever whole
in memory. What was solved again is given as `replaced`. A model whose heads no longer divide its
hidden size is saved under the class that its family names (`Family.undivided`): LlamaConfig refuses
such heads, the same tensors under Mistral's give the same logits, and every program that knows
Llama knows Mistral. The proof loads the folder back and compares its logits with those of the dense
model whose units are silenced.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from slimtune.artifacts.files import write_json
from slimtune.console import near
from slimtune.errors import InputError, QualityError
from slimtune.inference.stack import Stack, TokenBatch, input_hook
from slimtune.models.family import FAMILIES, NORM_PART, PARTS, axes_of, place
from slimtune.models.model_shape import ModelShape
from slimtune.models.weights import (
    OUTPUT,
    Checkpoint,
    CheckpointWriter,
    copy_companions,
    not_finite,
)
from slimtune.pruning.anatomy import Keep, channels, kept_along, prunable_shape


class PrunedWriter:
    """Writes `checkpoint` as a model of the smaller `shape`: `write` each layer, then `close`."""

    def __init__(self, checkpoint: Checkpoint, shape: ModelShape, layers: list[int], output: Path):
        self.checkpoint, self.output = checkpoint, output
        self.old, self.new = prunable_shape(checkpoint), shape
        self._names = _new_names(checkpoint, layers)
        self.config = smaller_config(checkpoint.config, shape, self.old, layers)
        spec, files = {}, {}
        for name, new_name in self._names.items():
            info, axes = checkpoint.tensors[name], axes_of(name)
            size = info.shape  # of a buffer that no cut touches
            if axes is not None:
                size = tuple(shape.sizes[axis] for axis in axes)
            spec[new_name] = (info.dtype, size)
            files[new_name] = info.file.name
        self.writer = CheckpointWriter(output, spec, files=files)

    @property
    def tensors(self) -> Mapping:
        """Where each tensor of the result lies, written or not yet."""
        return self.writer.tensors

    def write(
        self,
        layer: int | None,
        keep: Keep,
        replaced: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Writes the tensors of one (old) layer, or with None those outside of all layers."""
        for name, new_name in self._names.items():
            if place(name)[0] != layer:
                continue
            if replaced and name in replaced:
                self.writer.write(new_name, finite(replaced[name], self.checkpoint, name))
                continue
            axes = axes_of(name) or ()
            cuts = [kept_along(axis, layer, keep, self.old) for axis in axes]
            _write_rows(self.checkpoint, self.writer, name, new_name, cuts)

    def close(self) -> None:
        self.writer.close()
        copy_companions(self.checkpoint.folder, self.output, without={"config.json"})
        write_json(self.output / "config.json", self.config)


def write_pruned(checkpoint: Checkpoint, shape: ModelShape, keep: Keep, output: Path) -> None:
    """Writes all of `checkpoint` that `keep` names, nothing solved again."""
    writer = PrunedWriter(checkpoint, shape, list(keep.layers), output)
    for layer in [None, *keep.layers]:
        writer.write(layer, keep)
    writer.close()


def smaller_config(config: dict, shape: ModelShape, old: ModelShape, layers: list[int]) -> dict:
    """config.json of the result; InputError where no class of transformers can hold it."""
    changed = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
    }
    if (shape.hidden, shape.heads) != (old.hidden, old.heads) or config.get("head_dim"):
        changed["head_dim"] = shape.head_dim
    if config.get("layer_types"):
        changed["layer_types"] = [config["layer_types"][layer] for layer in layers]
    result = config | changed
    other = old.family.undivided
    if other is not None and shape.hidden % shape.heads:
        if shape.bias:
            raise InputError(
                f"{shape.heads} heads do not divide a hidden size of {shape.hidden}",
                "transformers' Llama class refuses that, and its Mistral class has no biases",
                "choose a --kv-group-ratio whose heads divide the hidden size, or 0",
            )
        for word in ("attention_bias", "mlp_bias", "pretraining_tp"):
            result.pop(word, None)
        result |= {"model_type": other, "architectures": [FAMILIES[other].model_class]}
        result["sliding_window"] = None
    return result


def finite(values: torch.Tensor, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """`values`, InputError if they hold NaN or infinity."""
    if not torch.isfinite(values).all():
        raise not_finite(checkpoint.folder, name)
    return values


def no_numbers(model: Path | str) -> InputError:
    """What is said of weights that are finite, while what is computed with them is not."""
    return InputError(
        f"{near(model)}: what it computes on the calibration rows is no number",
        "its weights are so large that float32 ends before their sums: damaged, or badly scaled",
        "copy the model folder again, and compare its files' sums with the original's",
    )


def require_finite(checkpoint: Checkpoint) -> None:
    """InputError for NaN or infinity in any tensor, before anything is written."""
    for name in checkpoint.tensors:
        for _, rows in checkpoint.rows(name):
            finite(rows, checkpoint, name)


def _new_names(checkpoint: Checkpoint, layers: list[int]) -> dict[str, str]:
    """Old name -> new name of what stays: layers are numbered from 0 again."""
    number = {old: new for new, old in enumerate(layers)}
    names = {}
    for name in checkpoint.tensors:
        layer, part = place(name)
        if layer is None:
            names[name] = name
        elif layer in number:
            names[name] = f"model.layers.{number[layer]}.{part}"
    return names


def _write_rows(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    name: str,
    new_name: str,
    cuts: list[torch.Tensor | None],
) -> None:
    written = 0
    for start, rows in checkpoint.rows(name):
        finite(rows, checkpoint, name)
        if cuts and cuts[0] is not None:
            rows = rows[cuts[0][(cuts[0] >= start) & (cuts[0] < start + len(rows))] - start]
        if len(cuts) > 1 and cuts[1] is not None:
            rows = rows.index_select(1, cuts[1])
        writer.write(new_name, rows, written)
        written += len(rows) if rows.dim() else 0


_WHOLE = 30_000_000  # bytes of weights up to which transformers loads the folder whole
_TOLERANCE = 1e-2  # of the largest logit; rounding is 1e-6 in float32, 3e-3 in bfloat16


@torch.inference_mode()
def masked(
    source: Path, keep: Keep, ids: torch.Tensor, replaced: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Logits (rows, length, vocabulary) of the dense model with all units but `keep`'s at zero.

    What a cut must come to, on a way of its own: nothing is cut, and no folder is written. Layers
    that go are skipped. `replaced` holds what was solved again or scaled for the kept hidden
    channels, by tensor; with it each layer is in memory whole.
    """
    replaced = replaced or {}
    checkpoint = Checkpoint(source)
    shape, stack = ModelShape.of(checkpoint.config), Stack.of(source)
    hidden = stack.embed(ids)
    for index in keep.layers:
        layer = stack.layer(index) if replaced else stack.streamed_layer(index)
        for name, values in replaced.items():
            if place(name)[0] == index:
                layer.get_parameter(place(name)[1])[..., keep.hidden] = values.float()
        _silence_units(layer, index, keep, shape)
        if keep.hidden is not None:
            for name, part in PARTS.items():
                if part.readers and name in shape.family.norms:
                    _narrow(layer.get_submodule(part.path), keep.hidden)
        hidden = stack.run(layer, hidden)
    norm = stack.norm()
    if keep.hidden is None:
        return logits_of(stack, hidden)
    final = f"{NORM_PART.path}.weight"
    if final in replaced:
        norm.weight[keep.hidden] = replaced[final].float()
    _narrow(norm, keep.hidden)
    states = norm(hidden)
    if OUTPUT in replaced:
        return states[..., keep.hidden] @ replaced[OUTPUT].float().T
    return torch.cat([states @ rows.T for _, rows in stack.head()], dim=-1)


def _silence_units(layer: nn.Module, index: int, keep: Keep, shape: ModelShape) -> None:
    """Neurons and heads that go send nothing on."""
    kept = {layer.mlp.down_proj: keep.ffn.get(index)}
    if index in keep.groups:
        width = shape.head_dim * (shape.heads // shape.kv_heads)
        kept[layer.self_attn.o_proj] = channels(keep.groups[index], width)
    for module, some in kept.items():
        if some is not None:
            input_hook(module, partial(_silence, kept=some))


def _narrow(norm: nn.Module, kept: torch.Tensor) -> None:
    """An RMSNorm over all n channels that gives what one over the k kept channels would.

    With zeros elsewhere the mean square over n is k/n of the one over k, so weight * sqrt(k/n) and
    epsilon * k/n come to the same.
    """
    share = len(kept) / norm.weight.numel()
    norm.weight.mul_(share**0.5)
    norm.variance_epsilon *= share
    input_hook(norm, partial(_silence, kept=kept))


def provable(source: Path) -> bool:
    """Whether the model is small enough to keep all that was solved again until it is compared."""
    return Checkpoint(source).bytes <= _WHOLE


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
    """Largest difference of logits, as a share of the largest; QualityError beyond rounding.

    Raises FloatingPointError where the expected ones are no numbers.
    """
    if not expected.isfinite().all():
        raise FloatingPointError("the pruned model's logits are NaN or infinite")
    found = loaded_logits(folder, ids)
    largest = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)  # all may be zero
    difference = ((found - expected).abs().max() / largest).item()
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


def first_row(batch: TokenBatch) -> torch.Tensor:
    """The ids of a batch's first row, without its padding."""
    return batch.ids[:1, : int(batch.real[0].sum())]


def _silence(inputs: torch.Tensor, kept: torch.Tensor) -> None:
    silent = torch.ones(inputs.shape[-1], dtype=torch.bool)
    silent[kept] = False
    inputs[..., silent] = 0
