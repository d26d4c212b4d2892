"""An importance matrix of our own: sums of squares of what enters each linear layer.

For every matrix W but the output's, sum over tokens t of x_t², x_t being the input of W at t, one
sum a column; as llama-imatrix measures it, on prepared rows rendered as in training.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from slimtune import prompts
from slimtune.config import Config
from slimtune.console import SettingsError, near
from slimtune.data.rows import read_rows
from slimtune.export.go_template import chosen
from slimtune.export.imatrix import Importance, read_imatrix, write_imatrix
from slimtune.export.plan import GgufPlan, ModelSource, load_source
from slimtune.export.tensors import gguf_name
from slimtune.models import tokenizers
from slimtune.models.positions import within_positions

_log = logging.getLogger(__name__)

OUTPUT_MATRIX = "output.weight"


def measure_importance(
    source: ModelSource, plan: GgufPlan, output: Path, config: Config
) -> Importance:
    """Measures `imatrix_rows` training rows and keeps the sums in `output`, a GGUF.

    The model is in memory once, as float32. Raises SettingsError where there are no rows.
    """
    file, count = config.training.train_data, config.gguf.imatrix_rows
    if not file.is_file():
        raise SettingsError(
            f"gguf.imatrix is auto, and {near(file)} is not there",
            "importance is measured on training rows",
            "run prepare_data.py, name rows with --train-data, or a file with --imatrix",
        )
    tokenizer = tokenizers.load_tokenizer(source.folder)
    template = chosen(source.folder, config.model.prompt_template)
    rows = [row["messages"] for row in read_rows(file)[:count]]
    longest = within_positions(config, source.folder).training.max_length
    encoded = [prompts.encode(tokenizer, r, template, longest) for r in rows]
    ids = [row["input_ids"] for row in encoded if row]
    _log.info("measuring importance on %d rows of %s", len(ids), near(file))
    sums, counts = sums_of_squares(
        load_source(source),
        ids,
        lambda name: gguf_name(plan.architecture, name),
    )
    write_imatrix(output, sums, counts, file.name, longest)
    return read_imatrix(output)


@torch.inference_mode()
def sums_of_squares(
    model: PreTrainedModel, rows: Iterable[list[int]], name_of: Callable[[str], str | None]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(sums, tokens) by GGUF name, over all positions of `rows` (token ids, one row a sequence)."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            squares = inputs[0].flatten(0, -2).double().square().sum(0)
            sums[name] = sums.get(name, 0) + squares
            counts[name] = counts.get(name, 0) + inputs[0].flatten(0, -2).shape[0]

        return add

    hooks = []
    for module_name, module in model.named_modules():
        name = name_of(f"{module_name}.weight") if isinstance(module, torch.nn.Linear) else None
        if name is not None and name != OUTPUT_MATRIX:
            hooks.append(module.register_forward_pre_hook(watch(name)))
    for row in rows:
        model(torch.tensor([row]), use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return {name: total.float().numpy() for name, total in sums.items()}, counts
