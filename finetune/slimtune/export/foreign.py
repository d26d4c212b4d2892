"""Architectures that SlimTune does not know, handed over to llama.cpp's own converter."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from slimtune.artifacts import stage_files
from slimtune.config import Config
from slimtune.console import SettingsError, size
from slimtune.export.architecture import Unsupported
from slimtune.export.llama_tools import convert_elsewhere, find_checkout


def require_hand_over(unknown: Unsupported, config: Config) -> None:
    """Raises `unknown` itself without LLAMA_CPP_DIR, SettingsError for what cannot be promised."""
    if find_checkout() is None or config.gguf.lora_model is not None:
        raise unknown
    wanted = {
        "create_modelfile": config.gguf.create_modelfile,
        "ollama_create": config.gguf.ollama_create,
        "imatrix": config.gguf.imatrix is not None,
    }
    for name in (name for name, given in wanted.items() if given):
        raise SettingsError(
            f"gguf.{name}: not for a model that llama.cpp's own converter converts",
            unknown.why,
            "leave it out, and use llama.cpp's tools on the finished file",
        )


def hand_over(model: Path, files: Sequence[Path], config: Config) -> dict[str, str]:
    """Each file by the converter in LLAMA_CPP_DIR, and llama-quantize; nothing of it is proven."""
    with ExitStack() as stack:
        for file, name in zip(files, config.gguf.quantization, strict=True):
            manifest = file.with_name(f"{file.stem}_run.json")
            inputs = [config.gguf.model_path]
            stage = stack.enter_context(
                stage_files("convert_to_gguf", manifest, config, inputs=inputs)
            )
            convert_elsewhere(model, stage.folder / file.name, name)
            stage.metrics["converter"] = str(find_checkout())
    return {
        "on disk": ", ".join(size(file.stat().st_size) for file in files),
        "converted by": f"llama.cpp in {find_checkout()}",
        "proof": "none: SlimTune does not know this architecture",
    }
