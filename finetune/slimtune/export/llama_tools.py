"""llama.cpp's own programs, where this library's encoder or knowledge ends.

`llama-quantize` on PATH encodes K-quants where no ggml library can be loaded, from a temporary F16
file. A checkout named by LLAMA_CPP_DIR converts the architectures that SlimTune does not know: they
are handed over to its convert_hf_to_gguf.py.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from slimtune.artifacts import stage_files
from slimtune.artifacts.files import write_json
from slimtune.config import Config, GenerationSection
from slimtune.console import size
from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.export.architecture import Unsupported
from slimtune.models.json_files import read_model_json
from slimtune.models.positions import positions_of
from slimtune.models.served_decoding import gguf_sampling, with_decoding_of
from slimtune.packages import pip_line

_log = logging.getLogger(__name__)

QUANTIZE = "llama-quantize"
_CONVERTER = "convert_hf_to_gguf.py"
_CONTEXT = 4096  # of a config.json that names no length
_DIRECT = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0"}


def find_quantize() -> Path | None:
    """llama-quantize on PATH, or built in LLAMA_CPP_DIR."""
    checkout = find_checkout()
    folders = [str(checkout / "build" / "bin")] if checkout else []
    found = shutil.which(QUANTIZE, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    return Path(found) if found else None


def quantize_file(source: Path, output: Path, name: str, imatrix: Path | None = None) -> None:
    """F16 GGUF -> GGUF of type `name`, by llama-quantize; ResourceError where it fails."""
    tool = find_quantize()
    if tool is None:
        raise no_encoder(name)
    _log.info("%s writes %s from a temporary F16 file", tool, output.name)
    options = ["--imatrix", str(imatrix)] if imatrix else []
    _run([tool, *options, source, output, name], {})


def convert_elsewhere(model: Path, output: Path, name: str, generation: GenerationSection) -> None:
    """An unknown architecture -> GGUF, by the converter of LLAMA_CPP_DIR.

    `generation` is what it writes for servers; by itself it takes generation_config.json's.
    Raises InputError where the variable is not set or the converter fails on the model.
    """
    checkout = find_checkout()
    if checkout is None:
        raise InputError(
            f"{model}: not an architecture that SlimTune converts",
            "LLAMA_CPP_DIR is not set",
            "set it to a checkout of llama.cpp, whose converter knows many more",
        )
    _log.info("%s converts %s", checkout / _CONVERTER, model)
    environment = {"PYTHONPATH": str(checkout / "gguf-py")}
    with TemporaryDirectory(dir=output.parent) as folder:
        target = output if name in _DIRECT else Path(folder) / "f16.gguf"
        kind = _DIRECT.get(name, "f16")
        about = read_model_json(model / "config.json")
        chosen = gguf_sampling(generation, positions_of(about) or _CONTEXT)
        told = {f"general.sampling.{name}": value for name, value in chosen.items()}
        write_json(Path(folder) / "metadata.json", told)
        convert = [sys.executable, checkout / _CONVERTER, model, "--outfile", target]
        metadata = ["--metadata", Path(folder) / "metadata.json"]
        _run([*convert, "--outtype", kind, *metadata], environment)
        if target != output:
            quantize_file(target, output, name)


def no_encoder(name: str) -> ResourceError:
    return ResourceError(
        f"quantization {name}: no encoder for K-quants on this machine",
        "neither the wheel xllamacpp nor gguf.ggml_library brings ggml's, and llama-quantize is "
        "not on PATH",
        f"{pip_line('xllamacpp')} (Linux, macOS), or name a libggml-base in gguf.ggml_library, "
        "or put llama-quantize on PATH; --quantization Q8_0 or Q4_0 need none of them",
    )


def find_checkout() -> Path | None:
    """The folder in LLAMA_CPP_DIR, if it holds llama.cpp's converter."""
    named = os.environ.get("LLAMA_CPP_DIR")
    return Path(named) if named and (Path(named) / _CONVERTER).is_file() else None


def _run(command: list[str | Path], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise ResourceError(
            f"{Path(command[0]).name} {Path(str(command[1])).name}: exit code {done.returncode}",
            lines[-1] if lines else "it said nothing",
            "run it by hand to see all it says: " + " ".join(map(str, command)),
        )


def _require_possible(unknown: Unsupported, config: Config) -> None:
    if find_checkout() is None or config.gguf.lora_model is not None:
        raise unknown
    wanted = {
        "create_modelfile": config.gguf.create_modelfile,
        "ollama_create": config.gguf.ollama_create,
        "imatrix": config.gguf.imatrix is not None,
        "target_size, target_bits or max_loss": config.gguf.target is not None,
    }
    for name in (name for name, given in wanted.items() if given):
        raise SettingsError(
            f"gguf.{name}: not for a model that llama.cpp's own converter converts",
            unknown.why,
            "leave it out, and use llama.cpp's tools on the finished file",
        )


def hand_over(
    model: Path, files: Sequence[Path], unknown: Unsupported, config: Config
) -> dict[str, str]:
    """Each file by the converter in LLAMA_CPP_DIR, and llama-quantize; nothing of it is proven.

    Raises `unknown` itself without LLAMA_CPP_DIR, SettingsError for what cannot be promised.
    """
    _require_possible(unknown, config)
    if config.options.dry_run:
        return {"converted by": "llama.cpp's own converter"}
    generation = with_decoding_of(config, model).generation
    with ExitStack() as stack:
        for file, name in zip(files, config.gguf.quantization, strict=True):
            manifest = file.with_name(f"{file.stem}_run.json")
            inputs = [config.gguf.model_path]
            stage = stack.enter_context(
                stage_files("convert_to_gguf", manifest, config, outputs=[file], inputs=inputs)
            )
            convert_elsewhere(model, stage.folder / file.name, name, generation)
            stage.metrics["converter"] = str(find_checkout())
    return {
        "on disk": ", ".join(size(file.stat().st_size) for file in files),
        "converted by": f"llama.cpp in {find_checkout()}",
        "proof": "none: SlimTune does not know this architecture",
    }
