"""An importance matrix of our own, and what errors cost, measured on prepared rows as in training.

For every matrix of the layers the sum over tokens t of x_t², x_t being what enters it at t, one sum
a column: as llama-imatrix measures it. For every matrix at all, where it is asked for, the
sensitivity of the loss (`sensitivity`). The model is never whole in memory.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from slimtune import prompts
from slimtune.config import Config
from slimtune.console import near
from slimtune.data.rows import read_rows
from slimtune.errors import SettingsError
from slimtune.export.go_template import chosen
from slimtune.export.imatrix import Feedback, Importance, Sensitivity, read_imatrix, write_imatrix
from slimtune.export.plan import GgufPlan, ModelSource
from slimtune.export.preflight import require_rows
from slimtune.export.sensitivity import Packed, fisher_sums, squares_of_inputs
from slimtune.export.tensors import gguf_name, row_order
from slimtune.inference.stack import Stack, Stream, TokenBatch, batches_of
from slimtune.machine.process import large_blocks_returned
from slimtune.models import tokenizers
from slimtune.models.merging import MergedCheckpoint
from slimtune.models.positions import within_positions

_log = logging.getLogger(__name__)

_BATCH_TOKENS = 1024
_SEED = 42  # of the labels that are drawn


def measure_importance(
    source: ModelSource, plan: GgufPlan, output: Path, config: Config, *, sensitive: bool = False
) -> Importance:
    """Measures `imatrix_rows` training rows and keeps the sums in `output`, a GGUF.

    `sensitive` measures what errors cost as well: backwards after forwards, three times the work.
    What flows between the layers lies beside `output` meanwhile. Raises SettingsError where there
    are no rows.
    """
    require_rows(config)
    file, count = config.training.train_data, config.gguf.imatrix_rows
    longest = within_positions(config, source.folder).training.max_length
    batches = batches_of(_encoded(source, config, count, longest), _BATCH_TOKENS)
    what = "importance and sensitivity" if sensitive else "importance"
    tokens = sum(batch.tokens for batch in batches)
    _log.info("measuring %s on %d tokens of %s", what, tokens, near(file))
    with TemporaryDirectory(dir=output.parent) as scratch:
        sums, counts, costs = observe(source, plan, batches, Path(scratch), sensitive=sensitive)
    write_imatrix(output, sums, counts, file.name, longest, costs)
    return read_imatrix(output)


@large_blocks_returned()
def observe(
    source: ModelSource,
    plan: GgufPlan,
    batches: Sequence[TokenBatch],
    scratch: Path,
    *,
    sensitive: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, Sensitivity]]:
    """(sums of squares, tokens, sensitivity) by GGUF name, rows in the order of the file."""
    stack = _stack(source)
    costs = {}
    if sensitive:
        squares, fisher, made_up = fisher_sums(stack, batches, scratch, _SEED)
        costs = {
            _name(plan, name): _as_in_file(plan, name, *fisher[name][:3], made_up.get(name))
            for name in fisher
        }
    else:
        squares = squares_of_inputs(stack, batches, [Stream(scratch, "hidden")])
    sums = {_name(plan, name): total.float().numpy() for name, total in squares.items()}
    tokens = sum(batch.tokens for batch in batches)
    return sums, dict.fromkeys(sums, tokens), costs


def _encoded(source: ModelSource, config: Config, count: int, longest: int) -> list[list[int]]:
    tokenizer = tokenizers.load_tokenizer(source.folder)
    template = chosen(source.folder, config.model.prompt_template)
    rows = [row["messages"] for row in read_rows(config.training.train_data)[:count]]
    encoded = [prompts.encode(tokenizer, row, template, longest) for row in rows]
    found = [row["input_ids"] for row in encoded if row]
    if not found:
        raise SettingsError(
            f"{near(config.training.train_data)}: no row fits into {longest} tokens",
            "importance is measured on training rows",
            "raise training.max_length, or name other rows with --train-data",
        )
    return found


def _stack(source: ModelSource) -> Stack:
    checkpoint = source.checkpoint
    if isinstance(checkpoint, MergedCheckpoint):
        return Stack(checkpoint.merged_config, checkpoint.tensors, checkpoint.read)
    return Stack(checkpoint.config, checkpoint.tensors)


def _name(plan: GgufPlan, name: str) -> str:
    return gguf_name(plan.architecture, name)


def _as_in_file(
    plan: GgufPlan,
    name: str,
    rows: torch.Tensor,
    columns: torch.Tensor,
    rounding: torch.Tensor,
    made_up: Packed | None,
) -> Sensitivity:
    order = row_order(plan.architecture, _name(plan, name))
    found = rows.float().numpy()
    if order is not None:
        found = found.reshape(-1, len(order))[:, order].reshape(-1)
    feedback = None
    if made_up is not None:
        kept, pairs = made_up
        feedback = Feedback(kept, lambda: pairs)
    return Sensitivity(found, columns.float().numpy(), rounding.float().numpy(), feedback)
