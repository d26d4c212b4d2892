"""A LoRA adapter as a GGUF file, and whether the file of a base is its own: told from both headers.

llama.cpp looks for each NAME of `NAME.lora_a` and `NAME.lora_b` among the base's tensors and
compares shapes (src/llama-adapter.cpp). What it would refuse is refused here, by name and before
anything is loaded. The same shapes do not make the same base: where the records of both files keep
the fingerprint of its weights, the two are compared.
"""

import logging
from pathlib import Path

from slimtune.artifacts import run_of
from slimtune.console import near
from slimtune.errors import InputError
from slimtune.models.gguf_header import GgufHeader, read_gguf
from slimtune.models.origin import MODEL_FINGERPRINT, recorded

_log = logging.getLogger(__name__)

_ENDS = (".lora_a", ".lora_b")
_EMBEDDING = "token_embd.weight"
_WRITE_IT = "python finetune/convert_to_gguf.py --model-path BASE --lora-model {} --lora-as adapter"


def require_model(header: GgufHeader) -> None:
    """InputError for the file of an adapter where one of a whole model is needed."""
    if _kind(header) == "adapter":
        raise InputError(
            f"{near(header.file)}: an adapter, and no model of its own",
            "its general.type says so; it changes a base and cannot answer without it",
            f"put it on its base: --models BASE.gguf+{near(header.file)}",
        )


def require_adapter(file: Path) -> GgufHeader:
    """The header of an adapter's file; InputError where it is none that llama.cpp can add."""
    if file.is_dir():
        raise InputError(
            f"{near(file)}: a folder, where the file of an adapter is needed",
            "llama.cpp puts a GGUF on a GGUF",
            _WRITE_IT.format(near(file)),
        )
    header = read_gguf(file)
    if _kind(header) != "adapter":
        raise InputError(
            f"{near(file)}: no adapter",
            f"its general.type is {_kind(header) or 'missing'}: after the + belongs the file of a "
            "LoRA adapter",
            "name one that convert_to_gguf.py --lora-as adapter wrote, or leave out the +",
        )
    kind = header.get("adapter.type", str, "")
    odd = next((name for name in header.tensors if not name.endswith(_ENDS)), None)
    if kind != "lora" or odd:
        raise InputError(
            f"{near(file)}: no LoRA adapter",
            f"it holds {odd}" if odd else f"its adapter.type is {kind or 'missing'}",
            "write it again: " + _WRITE_IT.format("ADAPTER"),
        )
    return header


def require_adapter_of(file: Path, base: GgufHeader) -> None:
    """InputError unless the adapter of `file` fits `base`, and is its own where that is known.

    Where it is not known, a caution says so.
    """
    header = require_adapter(file)
    if header.architecture != base.architecture:
        found = f"it is for {header.architecture or 'no architecture'}, the base is "
        raise _other_base(file, base, found + (base.architecture or "of none"))
    for weight in dict.fromkeys(name[: -len(_ENDS[0])] for name in header.tensors):
        if why := _misfit(weight, header, base):
            raise _other_base(file, base, why)
    _require_same_weights(file, base)


def _kind(header: GgufHeader) -> str:
    return header.get("general.type", str, "")


def _misfit(weight: str, adapter: GgufHeader, base: GgufHeader) -> str | None:
    """Why the pair of `weight` cannot be added to the base; None where it can."""
    pair = [adapter.tensors.get(weight + end) for end in _ENDS]
    missing = [end for end, tensor in zip(_ENDS, pair, strict=True) if tensor is None]
    if missing:
        return f"{weight} has no {missing[0]}"
    if weight not in base.tensors:
        return f"the base has no {weight}"
    found, (a, b) = base.tensors[weight].shape, (tensor.shape for tensor in pair)
    if len(found) == len(a) == len(b) == 2 and b[1] == a[weight == _EMBEDDING]:
        rows, columns = found
        # An embedding is looked up, not multiplied: its A is transposed, and B makes the columns.
        outer = (a[0], b[0]) if weight == _EMBEDDING else (b[0], a[1])
        if outer == (rows, columns):
            return None
    return f"{weight} is {_shape(found)} there, its A is {_shape(a)} and its B {_shape(b)}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _require_same_weights(file: Path, base: GgufHeader) -> None:
    then, run = recorded(file), run_of(base.file)
    now = run["metrics"].get(MODEL_FINGERPRINT) if run else None
    if then and now and then != now:
        why = f"the shapes are the same, the weights are not: fingerprint {then} then, {now} now"
        raise _other_base(file, base, why)
    if not (then and now):
        silent = file if not then else base.file
        _log.warning(
            "caution: %s: not known whether it was trained on %s: the shapes fit, but %s keeps no "
            "fingerprint of the base",
            near(file),
            near(base.file),
            near(silent),
        )


def _other_base(file: Path, base: GgufHeader, why: str) -> InputError:
    what = f"{near(file)}: this adapter is for another base than {near(base.file)}"
    run = run_of(file)
    # convert_to_gguf.py records the adapter, then the base.
    model = near(run["inputs"][-1]["path"]) if run and len(run["inputs"]) > 1 else None
    cure = "give the file of the base that it was trained on"
    if model:
        cure += f", made by `python finetune/convert_to_gguf.py --model-path {model}`"
    return InputError(what, why, cure)
