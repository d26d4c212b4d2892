"""What a cut costs, by criterion, with and without refit: perplexity on stories nobody trained on.

    python benchmarks/compression.py             # three seeds, medians
    python benchmarks/compression.py --small     # one seed
    python benchmarks/compression.py --only recovery   # what distillation wins back; or: cuts
    python benchmarks/compression.py --only blocks     # of that, what layers learn by themselves

stories260K, one shot: a quarter of FFN neurons and KV groups (-22 % parameters), one layer, zeros.
Calibration is 256 windows that the model wrote itself; perplexity is over the last 30 % of the
stories of tinystories.txt, in windows of 256 tokens with a BOS only where a story starts. Every
side is a process of its own.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import recovery
from measuring import FINETUNE, machine, measure, report, table
from stories import CALIBRATION, MODEL, TEXT, WINDOW, held_out

sys.path.insert(0, str(FINETUNE))
CRITERIA = ("random", "magnitude", "taylor", "activation")
SPARSE = (
    ("global", "unstructured"),
    ("magnitude", "unstructured"),
    ("wanda", "unstructured"),
    ("magnitude", "2:4"),
    ("wanda", "2:4"),
)


@dataclass(frozen=True)
class Zeros:
    """What `sparsify` reads of the settings."""

    sparsity: float
    sparsity_method: str
    sparsity_pattern: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one seed instead of three")
    parser.add_argument("--only", choices=("cuts", "recovery", "blocks"), help="one part")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)  # the side that is measured
    options = parser.parse_args()
    if options.seed is not None:
        report(**figures(options.seed))
        return
    if not TEXT.is_file():
        sys.exit(f"{TEXT} is not here: this benchmark needs the shared data")
    print(machine())
    seeds = range(1 if options.small else 3)
    parts = {"cuts": sys.modules[__name__], "recovery": recovery}
    parts = {"blocks": recovery} if options.only == "blocks" else parts
    for name, part in parts.items():
        if options.only in (None, name):
            some = ["--only", name] if name == "blocks" else []
            command = [sys.executable, part.__file__, *some, "--seed"]
            runs = [measure([*command, str(seed)]).results for seed in seeds]
            medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            part.show(medians, len(seeds))


def show(found: dict[str, float], seeds: int) -> None:
    """The tables, each bar beside its figure."""
    dense = found["dense"]
    rows = []
    for criterion in CRITERIA:
        plain, refitted = found[criterion], found[f"{criterion} refit"]
        rows.append((criterion, plain, refitted, refitted / plain, refitted / dense))
    title = f"FFN and KV groups -25 %, perplexity (dense {dense:.2f}), median of {seeds} seeds"
    table(title, ("criterion", "cut", "+ refit", "refit / cut (bar 0.8)", "refit / dense"), rows)
    ratio = found["activation"] / found["magnitude"]
    print(f"activation / magnitude: {ratio:.2f} (bar 0.60)")
    print(f"activation + refit / dense: {found['activation refit'] / dense:.2f} (bar 2.30)")
    others = [name for name in found if name not in ("dense",) and name.split()[0] not in CRITERIA]
    table("other cuts, perplexity", ("cut", "perplexity"), [(name, found[name]) for name in others])
    print("zeros: size on disk and speed are unchanged")


def figures(seed: int) -> dict[str, float]:
    """Perplexity of every side for one seed of the calibration."""
    from slimtune.inference.stack import batches_of, read_layers
    from slimtune.models.weights import Checkpoint
    from slimtune.pruning.anatomy import prunable_shape
    from slimtune.pruning.calibration import own_words
    from slimtune.pruning.depth import drop_layers
    from slimtune.pruning.hidden import cut_hidden
    from slimtune.pruning.sizes import Ratios, smaller
    from slimtune.pruning.sparsity import sparsify
    from slimtune.pruning.width import cut_width

    shape, held = prunable_shape(Checkpoint(MODEL)), batches_of(held_out())
    batches = batches_of(own_words(MODEL, CALIBRATION, WINDOW, seed))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"

        def perplexity(name: str) -> float:
            return read_layers(Path(folder) / name, held, scratch).perplexity

        found = {"dense": read_layers(MODEL, held, scratch).perplexity}
        common = {"batches": batches, "seed": seed, "scratch": scratch}
        quarter = smaller(shape, Ratios(ffn=0.25, groups=0.25))
        for name in (f"{c}{' refit' * solve}" for c in CRITERIA for solve in (False, True)):
            criterion, solve = name.split()[0], name.endswith("refit")
            out = Path(folder) / name
            cut_width(MODEL, out, quarter, criterion=criterion, solve=solve, **common)
            found[name] = perplexity(name)
        for name, ratios in (("FFN -25 %", Ratios(ffn=0.25)), ("KV -25 %", Ratios(groups=0.25))):
            out = Path(folder) / name
            cut_width(MODEL, out, smaller(shape, ratios), criterion="activation", **common)
            found[name] = perplexity(name)
        one = smaller(shape, Ratios(layers=0.2))
        drop_layers(MODEL, Path(folder) / "a layer", one, batches, ends=False, scratch=scratch)
        found["one layer"] = perplexity("a layer")
        half = smaller(shape, Ratios(hidden=0.5))
        cut_hidden(
            MODEL, Path(folder) / "hidden", half, criterion="activation", solve=True, **common
        )
        found["hidden -50 %"] = perplexity("hidden")
        for method, pattern in SPARSE:
            name = f"zeros {pattern} {method}"
            zeros = Zeros(0.5, method, pattern)
            sparsify(MODEL, Path(folder) / name, zeros, batches, scratch)
            found[name] = perplexity(name)
    return found


if __name__ == "__main__":
    main()
