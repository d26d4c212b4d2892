"""The embedded default: a closed bilingual world, and two small Llamas that have read of it."""

from slimtune.sample.parts import example, make, missing, unpack
from slimtune.sample.world import check_answer, rows, world_text

__all__ = ["check_answer", "example", "make", "missing", "rows", "world_text", "unpack"]
