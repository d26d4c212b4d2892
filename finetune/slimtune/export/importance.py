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
from slimtune.data.rows import read_rows, validation_file
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

    `sensitive` measures what errors cost as well: backwards after forwards, three times the work,
    and half as many validation rows. What flows between the layers lies beside `output` meanwhile.
    Raises SettingsError where there are no rows.
    """
    require_rows(config)
    file, count = config.training.train_data, config.gguf.imatrix_rows
    longest = within_positions(config, source.folder).training.max_length
    rows, kept_back = _encoded(source, config, file, count, longest), []
    if not rows:
        raise SettingsError(
            f"{near(file)}: no row fits into {longest} tokens",
            "importance is measured on training rows",
            "raise training.max_length, or name other rows with --train-data",
        )
    if sensitive:
        rows, kept_back = _kept_back(source, config, rows, longest)
    batches = [batches_of(part, _BATCH_TOKENS) for part in (rows, kept_back)]
    what = "importance and sensitivity" if sensitive else "importance"
    tokens = sum(batch.tokens for batch in batches[0])
    _log.info("measuring %s on %d tokens of %s", what, tokens, near(file))
    with TemporaryDirectory(dir=output.parent) as scratch:
        sums, counts, costs = observe(
            source, plan, batches[0], Path(scratch), sensitive=sensitive, kept_back=batches[1]
        )
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
    kept_back: Sequence[TokenBatch] = (),
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, Sensitivity]]:
    """(sums of squares, tokens, sensitivity) by GGUF name, rows in the order of the file.

    `kept_back` are further batches of a sensitive one: see `fisher_sums`.
    """
    stack = _stack(source)
    costs = {}
    if sensitive:
        squares, fisher, made_up = fisher_sums(stack, batches, scratch, _SEED, kept_back)
        costs = {
            _name(plan, name): _as_in_file(plan, name, *fisher[name][:3], made_up.get(name))
            for name in fisher
        }
    else:
        squares = squares_of_inputs(stack, batches, [Stream(scratch, "hidden")])
    sums = {_name(plan, name): total.float().numpy() for name, total in squares.items()}
    tokens = sum(batch.tokens for batch in batches)
    return sums, dict.fromkeys(sums, tokens), costs


def _kept_back(
    source: ModelSource, config: Config, rows: list[list[int]], longest: int
) -> tuple[list[list[int]], list[list[int]]]:
    """(rows to measure on, rows to tell the loss by): half as many validation rows, as they are
    like no training row; every fourth row where there are none."""
    file = validation_file(config.training)
    others = _encoded(source, config, file, (len(rows) + 1) // 2, longest) if file else []
    if others:
        return rows, others
    return [row for n, row in enumerate(rows) if n % 4 != 3], rows[3::4]


def _encoded(
    source: ModelSource, config: Config, file: Path, count: int, longest: int
) -> list[list[int]]:
    tokenizer = tokenizers.load_tokenizer(source.folder)
    template = chosen(source.folder, config.model.prompt_template)
    rows = [row["messages"] for row in read_rows(file)[:count]]
    encoded = [prompts.encode(tokenizer, row, template, longest) for row in rows]
    return [row["input_ids"] for row in encoded if row]


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
