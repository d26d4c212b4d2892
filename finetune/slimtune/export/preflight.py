"""What a conversion will do, decided and checked from headers alone, in a second, before any work.

Nothing here imports torch or transformers, and of the weights only norms and biases are read.
"""

import logging
import shutil
from pathlib import Path

from slimtune.console import ResourceError, size
from slimtune.export.architecture import map_tensors, read_architecture
from slimtune.export.checks import require_finite, require_one_end
from slimtune.export.plan import Plan
from slimtune.export.quant_types import K_QUANTS, choose_types, quantization
from slimtune.export.vocabulary import read_vocabulary
from slimtune.models.checkpoints import Checkpoint
from slimtune.models.llama_library import library

log = logging.getLogger(__name__)


def preflight(model_folder: Path | str, quantization_name: str) -> Plan:
    """Checks everything that headers can tell, before any work.

    Raises SettingsError for an unknown type, InputError for a folder that is no convertible model,
    ResourceError where a K-quant is asked for and ggml's library is not there.
    """
    folder = Path(model_folder)
    quantization(quantization_name)
    checkpoint = Checkpoint(folder)
    architecture = read_architecture(folder, checkpoint.config)
    source = map_tensors(folder, architecture, checkpoint.shapes)
    checkpoint.require_full_precision("make a GGUF")
    vocabulary = read_vocabulary(folder, architecture.vocabulary)
    require_one_end(folder, vocabulary)
    require_finite(checkpoint, [name for name in source.values() if _is_small(checkpoint, name)])
    shapes = {name: checkpoint.tensors[hf].shape for name, hf in source.items()}
    numpy_only = not _has_library()
    choices = choose_types(
        shapes,
        quantization_name,
        seventy_billion=architecture.seventy_billion,
        k_quants=not numpy_only,
    )
    if numpy_only and any(choice.type in K_QUANTS for choice in choices.values()):
        raise _no_encoder(quantization_name)
    return Plan(
        folder,
        quantization_name,
        checkpoint,
        architecture,
        vocabulary,
        source,
        choices,
        numpy_only,
    )


def require_disk(plan: Plan, output: Path) -> None:
    """Raises ResourceError if the file will not fit beside `output`, whose folder may not exist."""
    folder = next(parent for parent in output.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < plan.bytes:
        raise ResourceError(
            f"{folder}: {plan.bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            f"a {plan.quantization} file of this model is that large",
            "free some space, choose another --output-dir, or a smaller type",
        )


def require_proof(verify: str) -> None:
    """Raises ResourceError if a proof is wanted and llama.cpp's code is not there to give it."""
    if verify != "off" and not _has_library():
        raise ResourceError(
            f"gguf.verify is {verify}: llama.cpp's library cannot be used on this machine",
            "without it nothing can show that the file answers as the model does",
            "pip install -r requirements.txt on Linux or macOS, or go on unproven: --verify off",
        )


def words(plan: Plan) -> dict[str, str]:
    """The plan for a script's last lines: size, types, and every tensor that fell back."""
    return {
        "on disk": size(plan.bytes),
        "types": ", ".join(f"{count} {name}" for name, count in plan.types.items()),
        "fallbacks": ", ".join(plan.fallbacks) or "none",
    }


def _is_small(checkpoint: Checkpoint, name: str) -> bool:
    return len(checkpoint.tensors[name].shape) < 2


def _has_library() -> bool:
    try:
        library()
    except ResourceError as error:
        log.debug("encoding with numpy: %s", error.why)
        return False
    return True


def _no_encoder(name: str) -> ResourceError:
    return ResourceError(
        f"quantization {name}: no encoder for K-quants on this machine",
        "they need ggml's library, which the wheel xllamacpp brings on Linux and macOS",
        "pip install xllamacpp, or --quantization Q8_0 or Q4_0, which need nothing; "
        "or F16 and then llama.cpp's llama-quantize",
    )
