"""The embedded default: a closed bilingual world, and two small Llamas that have read of it."""

from slimtune.sample.parts import example, make, missing
from slimtune.sample.shipped import unpack
from slimtune.sample.world import check, rows, text

__all__ = ["check", "example", "make", "missing", "rows", "text", "unpack"]
