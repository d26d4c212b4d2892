"""What a conversion will do, decided and checked from headers alone, in a second, before any work.

Nothing here imports torch or transformers. Of the weights only norms and biases are read, which
must be finite; the folder's files must agree on the end token.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from slimtune.config import Config, Gguf
from slimtune.console import near, size
from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.export.architecture import read_architecture
from slimtune.export.llama_tools import find_quantize, no_encoder
from slimtune.export.plan import Encoding, GgufPlan, ModelSource, as_source
from slimtune.export.quant_types import Precision, quantization
from slimtune.export.tensors import map_tensors, require_unquantised
from slimtune.export.vocabulary import Vocabulary, read_vocabulary
from slimtune.inference.llama_library import library
from slimtune.machine.disks import require_space
from slimtune.models import memory
from slimtune.models.json_files import read_model_json
from slimtune.models.tokenizer_files import special_tokens
from slimtune.models.weights import Checkpoint, require_layers
from slimtune.packages import pip_line

_log = logging.getLogger(__name__)


def preflight(
    model: Path | str | ModelSource, quantization_name: str, *, encoding: Encoding | None = None
) -> GgufPlan:
    """Checks everything that headers can tell, before any work.

    Raises SettingsError for an unknown type, InputError for a folder that is no convertible model,
    ResourceError where ggml's library is asked for and is not there.
    """
    quantization(quantization_name)
    encoding = encoding or Encoding()
    source = as_source(model)
    folder, checkpoint = source.folder, source.checkpoint
    require_unquantised(folder, checkpoint.shapes)
    config = read_model_json(folder / "config.json")
    require_layers(folder, config, checkpoint.shapes)
    architecture = read_architecture(folder, config)
    mapped = map_tensors(folder, architecture, checkpoint.shapes)
    checkpoint.require_full_precision("make a GGUF")
    vocabulary = read_vocabulary(folder, architecture.shape.vocabulary)
    require_one_end(folder, vocabulary)
    require_finite_norms(
        checkpoint, [name for name in mapped.values() if _is_small(checkpoint, name)]
    )
    plan = GgufPlan(
        folder, checkpoint, architecture, vocabulary, mapped, quantization_name, encoding
    )
    require_encoder(plan)
    return plan


def require_encoder(plan: GgufPlan) -> None:
    """Raises ResourceError where neither ggml's library nor llama-quantize can make the types."""
    if plan.needs_tool and find_quantize() is None:
        raise no_encoder(plan.quantization)


def require_disk(plans: dict[Path, GgufPlan]) -> None:
    """Raises ResourceError if the files will not fit where they are to be written together."""
    types = " and ".join(plan.quantization for plan in plans.values())
    needed = sum(plan.bytes for plan in plans.values())
    require_space(next(iter(plans)), needed, f"this model as {types} is that large")


def require_rows(config: Config) -> None:
    """Raises SettingsError where there are no rows to measure importance and sensitivity on."""
    file = config.training.train_data
    if not file.is_file():
        what = f"gguf.imatrix is {config.gguf.imatrix}"
        if config.gguf.target:
            what = f"a file of {config.gguf.target} is asked for"
        raise SettingsError(
            f"{what}, and {near(file)} is not there",
            "importance is measured on training rows",
            "run prepare_data.py, name rows with --train-data, or a file with --imatrix",
        )


def require_proof(gguf: Gguf) -> None:
    """Raises ResourceError if llama.cpp's answers are wanted, for the proof or to compare Ollama's
    with, and its code is not there to give them.
    """
    wanted = {f"verify is {gguf.verify}": gguf.verify != "off", "ollama_create": gguf.ollama_create}
    asking = next((name for name, given in wanted.items() if given), None)
    if asking and not _has_library():
        raise ResourceError(
            f"gguf.{asking}: llama.cpp's library cannot be used on this machine",
            "without it nothing can show that the file answers as the model does",
            f"{pip_line('xllamacpp')} on Linux or macOS, or go on unproven: --verify off "
            "--create-modelfile",
        )


def reference_precision(folder: Path) -> Precision | None:
    """The widest numbers in which free memory holds the proof's reference, None if none do."""
    free = memory.available_memory()
    return next((name for name, need in _reference_memory(folder).items() if need < free), None)


def memory_words(folder: Path, verify: str) -> dict[str, str]:
    """What memory a run will take, for --dry-run."""
    if verify == "off":
        return {"memory": "about 0.1 GB"}
    precision = reference_precision(folder)
    if precision is None:
        least = size(_reference_memory(folder)["bfloat16"])
        return {"memory": f"about 0.1 GB; the proof of text and likelihood would need {least}"}
    need = size(_reference_memory(folder)[precision])
    return {"memory": f"about 0.1 GB; {need} for the proof against the model in {precision}"}


def _reference_memory(folder: Path) -> dict[Precision, float]:
    config = read_model_json(folder / "config.json")
    sizes: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
    return {
        name: memory.estimate_memory(config, "inference", itemsize=itemsize).total
        for name, itemsize in sizes.items()
    }


def preflight_lines(plan: GgufPlan) -> dict[str, str]:
    """The plan for a script's last lines: size, types, every tensor that fell back, expected loss.

    Tensors that differ in their layer only are counted together; run.json lists each.
    """
    alike = Counter(re.sub(r"^blk\.\d+", "blk.*", text) for text in plan.fallbacks)
    fallbacks = [text if count == 1 else f"{count} × {text}" for text, count in alike.items()]
    lines = {
        "on disk": size(plan.bytes),
        "types": ", ".join(f"{count} {name}" for name, count in plan.types.items()),
    }
    if plan.allocation is None:
        return lines | {"fallbacks": ", ".join(fallbacks) or "none"}
    if plan.allocation.loss is None:
        return lines
    return lines | {"expected loss": f"{plan.allocation.loss:.4f} nats a token (KL divergence)"}


def _is_small(checkpoint: Checkpoint, name: str) -> bool:
    return len(checkpoint.tensors[name].shape) < 2


def _has_library() -> bool:
    try:
        library()
    except ResourceError as error:
        _log.debug("encoding with numpy: %s", error.why)
        return False
    return True


def require_one_end(folder: Path, vocabulary: Vocabulary) -> None:
    """InputError unless config, generation config and tokenizer name the same end token.

    The first two may name several; one of them must be the tokenizer's. A model whose files
    disagree stops in one program and runs on in another.
    """
    tokens = special_tokens(folder, vocabulary.tokens)
    for text in (tokens.eos, tokens.named_eos):
        if text.encode() not in vocabulary.tokens:
            raise InputError(
                f"{folder}: the end token {text!r} is not in the vocabulary",
                "tokenizer_config.json names it; without its id no answer would ever end",
                "copy the tokenizer's files again from the model it was trained with",
            )
    token = vocabulary.tokens.index(tokens.eos.encode())
    known = {token, vocabulary.tokens.index(tokens.named_eos.encode())}
    for name in ("config.json", "generation_config.json"):
        ids = read_model_json(folder / name, optional=True).get("eos_token_id")
        named = ids if isinstance(ids, list) else [ids]
        if ids is not None and not known & set(named):
            raise InputError(
                f"{folder / name}: eos_token_id is {ids}",
                f"the tokenizer's end token is {tokens.eos!r}, id {token}: answers would not end",
                f"write {token} there, if the model was trained with {tokens.eos!r}; "
                "else correct eos_token in tokenizer_config.json",
            )


def require_finite_norms(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """InputError if a small tensor (norms, biases) holds NaN or infinity: training diverged."""
    for name in names:
        values = checkpoint.read_float32(name).reshape(-1)
        odd = np.flatnonzero(~np.isfinite(values))
        if len(odd):
            raise InputError(
                f"{checkpoint.folder}: {name} holds {values[odd[0]]} at {odd[0]}",
                f"{len(odd)} of {len(values)} values are not finite: training diverged",
                "train again with a smaller learning rate, or copy the folder again",
            )
