"""How many of the test questions were in the training data: counted again, whoever split them."""

from collections.abc import Mapping, Sequence
from typing import Any

from slimtune.data.keys import keys_of
from slimtune.evaluation.answers import Question


def counted(
    questions: Sequence[Question], trained_on: Sequence[Mapping[str, Any]] | None
) -> dict[str, int | None]:
    """`training_rows`, and `leaked_rows`: test rows that ask what a training row asks.

    Case, width, spacing and punctuation are forgiven. Both None without training rows.
    """
    if trained_on is None:
        return {"training_rows": None, "leaked_rows": None}
    learned = {keys_of(row["messages"]).question for row in trained_on}
    leaked = sum(keys_of(asked.messages).question in learned for asked in questions)
    return {"training_rows": len(trained_on), "leaked_rows": leaked}
