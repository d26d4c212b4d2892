"""Five training rows for the data report, spread over the file, as the model will see them."""

import json
from typing import Any

import numpy as np

from slimtune.data import splits
from slimtune.data.account import Fit
from slimtune.data.preparation import Prepared

EXAMPLES = 5


class Examples:
    """Takes what is wanted of the rows that are written; `rows` are ready for the report.

    Each is {"file", "line", "pieces": [(text, supervised)]}: the prompt under the template, its
    answers marked; without a tokenizer the turns under their roles.
    """

    def __init__(self, prepared: Prepared, fit: Fit | None) -> None:
        judged = prepared.judged
        train = np.flatnonzero((judged.kind == 0) & (judged.split == splits.TRAIN))
        spread = np.linspace(0, len(train) - 1, min(EXAMPLES, len(train))).astype(int)
        self._wanted = set(train[spread].tolist())
        self._fit = fit
        self.rows: list[dict[str, Any]] = []

    def take(self, place: int, line: bytes) -> None:
        """The row as it is written, after the length limit; most are passed by."""
        if place not in self._wanted:
            return
        row = json.loads(line)
        messages = row["messages"]
        if self._fit:
            pieces = self._fit.shown(messages)
        else:
            pieces = [
                (f"{m['role']}: {m['content']}\n", m["role"] == "assistant") for m in messages
            ]
        self.rows.append({**row["source"], "pieces": pieces})
