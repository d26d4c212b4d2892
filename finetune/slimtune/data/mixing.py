"""How often each row is used, where an input has a weight: a.csv:2 repeats, b.jsonl:0.5 draws.

A weight of 2.5 gives each row two copies, and half of the rows a third. The rows of the fraction
are those with the smallest hash of seed and text: exactly as many as it says, rounded, and nearly
the same ones when rows are added.
"""

from collections.abc import Sequence

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (  # splitmix64, prng.di.unimi.it/splitmix64.c
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST = np.uint64(31)


def row_copies(
    texts: np.ndarray, files: np.ndarray, usable: np.ndarray, weights: Sequence[float], seed: int
) -> np.ndarray:
    """The copies of each row (uint16), 0 for one that is not drawn; 1 for what is not usable.

    `texts` are 64-bit hashes of the rows, `files` the place of each row's file in `weights`.
    """
    copies = np.ones(len(texts), np.uint16)
    for file, weight in enumerate(weights):
        if weight == 1:
            continue
        rows = np.flatnonzero(usable & (files == file))
        copies[rows] = int(weight)
        drawn = round((weight - int(weight)) * len(rows))
        copies[rows[np.argsort(_mixed(texts[rows], seed), kind="stable")[:drawn]]] += 1
    return copies


def _mixed(keys: np.ndarray, seed: int) -> np.ndarray:
    """Each key as another number without order, another one for another seed."""
    mixed = keys ^ np.uint64((seed * int(_STEP) + int(_STEP)) % 2**64)
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> _LAST)
