"""What benchmarks/export.py does in processes of their own: `export_sides.py SIDE WORDS`."""

import sys
import tempfile
from pathlib import Path

from export_models import SHAPES, write_adapter, write_model
from measuring import SHARED_DATA, report

TOKENIZER = SHARED_DATA / "llama2-tokenizer" / "tokenizer.model"


def write_inputs(shape: str, model: str, adapter: str) -> None:
    """The random model and its adapter, unless they are there."""
    write_model(Path(model), SHAPES[shape], TOKENIZER)
    write_adapter(Path(adapter), Path(model), SHAPES[shape])


def merge_by_peft(base: str, adapter: str, output: str) -> None:
    """The peer's side of `merge`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)


def compare_folders(ours: str, theirs: str) -> None:
    """How many tensors of two model folders hold the same bytes."""
    from slimtune.models.headers import read_bytes
    from slimtune.models.weights import Checkpoint

    one, two = Checkpoint(ours), Checkpoint(theirs)
    names = one.tensors.keys() | two.tensors.keys()
    equal = sum(
        read_bytes(one.tensors[name]).tobytes() == read_bytes(two.tensors[name]).tobytes()
        for name in names
    )
    report(tensors=len(names), equal=equal)


def measure_importance(model: str, text: str, theirs: str) -> None:
    """Our side of `imatrix`: the chunks llama-imatrix makes, each beginning with BOS."""
    import numpy as np

    from slimtune.export.imatrix import read_imatrix
    from slimtune.export.importance import observe
    from slimtune.export.plan import as_source
    from slimtune.export.preflight import preflight
    from slimtune.inference.stack import batches_of
    from slimtune.models import tokenizers

    tokenizer = tokenizers.load_tokenizer(model)
    ids = tokenizer(Path(text).read_text(encoding="utf-8")[:20_000])["input_ids"]
    chunks = [[tokenizer.bos_token_id, *ids[i * 256 + 1 : (i + 1) * 256]] for i in range(4)]
    plan, batches = preflight(model, "F16"), batches_of(chunks)
    with tempfile.TemporaryDirectory(dir=Path(model).parent) as scratch:
        sums, counts, _ = observe(as_source(model), plan, batches, Path(scratch))
    known = read_imatrix(Path(theirs)).weights
    if known.keys() != sums.keys():
        raise SystemExit(f"other matrices were measured: {sorted(known.keys() ^ sums.keys())[:4]}")
    errors = {
        name: np.linalg.norm(sums[name] / counts[name] - known[name]) / np.linalg.norm(known[name])
        for name in known
    }
    report(worst=float(max(errors.values())))


SIDES = {
    side.__name__: side
    for side in (write_inputs, merge_by_peft, compare_folders, measure_importance)
}

if __name__ == "__main__":
    SIDES[sys.argv[1]](*sys.argv[2:])
