"""Ollama's side of an export: the Modelfile beside the user, `ollama create`, eight questions."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path, PurePath

from slimtune.artifacts import not_without_overwrite, require_writable, system_prompt_for
from slimtune.artifacts.files import is_plain, refuse_link, sha256, write_text
from slimtune.artifacts.records import read_manifest
from slimtune.config import Config
from slimtune.console import near, quoted
from slimtune.errors import ResourceError, SettingsError
from slimtune.export.modelfile import LAST_WITH_ADAPTER, modelfile
from slimtune.export.plan import GgufPlan
from slimtune.export.proof import trained_in
from slimtune.inference.server_address import Server
from slimtune.models.ollama_store import PREFIX, require_name
from slimtune.models.tokenizer_files import special_tokens

_CONTEXT = 4096  # Ollama reserves memory for every token of the context
_HELLO_SECONDS = 10.0
_SUM = "modelfile_sha256"  # in the record of the file that is exported with a Modelfile
_LARGEST = 1 << 20  # bytes: a Modelfile of ours has a few thousand


def require_target(file: Path, config: Config) -> None:
    """Before the work: raises SettingsError for a name that Ollama does not take, and for a
    Modelfile that is there already and may not be replaced: one that a run of ours left so may be;
    ResourceError if `ollama create` is to be run and there is no ollama, or none that runs.
    """
    require_name(config.gguf.model_name)
    refuse_link(file)
    require_writable(file, config)
    if file.exists() and not config.options.overwrite and not _as_written(file, config):
        yours = SettingsError(
            f"{near(file)}: exists already",
            "it may hold changes of yours",
            "move it away, or add --overwrite",
        )
        not_without_overwrite(yours, config)
    if config.gguf.ollama_create:
        _require_ollama(config)


def recorded(text: str | None) -> dict[str, str]:
    """For the record of a file that is exported with a Modelfile of this text: its SHA-256."""
    return (
        {_SUM: hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()} if text else {}
    )


def _as_written(file: Path, config: Config) -> bool:
    """Whether a run of ours wrote these very bytes: a record where it says FROM, or where this run
    writes to, has their sum. Nothing else that the file names is looked at."""
    if not file.is_file() or file.stat().st_size > _LARGEST:
        return False
    folders = {config.gguf.output_dir}
    found = re.match(r'FROM "\./(.+)"\n', file.read_text(encoding="utf-8", errors="replace"))
    if found and is_plain(found[1]):
        folders.add((file.parent / found[1]).parent)
    records = [read_manifest(one) for folder in folders for one in folder.glob("*_run.json")]
    return sha256(file) in [run["metrics"].get(_SUM) for run in records if run]


def _require_ollama(config: Config) -> None:
    from slimtune.inference.server_client import ServerClient  # and an HTTP client

    if shutil.which("ollama") is None:
        raise ResourceError(
            "gguf.ollama_create: there is no ollama on PATH",
            "the model cannot be handed over to a program that is not installed",
            "install it from ollama.com, or use --create-modelfile alone and create it elsewhere",
        )
    server = Server.of(PREFIX + config.gguf.model_name)
    with ServerClient(server, patience=_HELLO_SECONDS, pauses=()) as client:
        version = client.version()
    if version is None:
        raise ResourceError(
            f"gguf.ollama_create: no Ollama answers at {server.base}",
            "`ollama create` hands a model to a running server",
            "start it with `ollama serve` (OLLAMA_HOST names another address), or use "
            "--create-modelfile alone and create the model later",
        )
    if config.gguf.lora_as == "adapter" and _newer(version, LAST_WITH_ADAPTER):
        raise ResourceError(
            f"gguf.ollama_create: Ollama {version} takes no adapter beside its base",
            f"the last version that does is {LAST_WITH_ADAPTER}",
            "merge it: --lora-as merged",
        )


def _newer(version: str, than: str) -> bool:
    """Whether it is a later release; one that is no number is not."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return bool(found) and tuple(map(int, found.groups())) > tuple(map(int, than.split(".")))


def modelfile_for(
    file: Path, gguf: Path, plan: GgufPlan, config: Config, adapter: Path | None = None
) -> str:
    """FROM the GGUF (relative to the Modelfile), the model's template, system, stops, context."""
    tokens = special_tokens(plan.folder, plan.vocabulary.tokens)
    return modelfile(
        _relative(gguf, file.parent),
        plan.template,
        tokens,
        system=system_prompt_for(config, trained_in(config)),
        num_ctx=min(_CONTEXT, plan.architecture.context),
        generation=plan.generation,
        adapter=_relative(adapter, file.parent) if adapter else None,
    )


def install(
    file: Path,
    text: str,
    gguf: Path,
    plan: GgufPlan,
    config: Config,
    adapter: Path | None = None,
) -> tuple[dict[str, str], str]:
    """Writes the Modelfile, and has Ollama take the model if the settings say so.

    Gives what there is to tell of it, and the command that comes next.
    """
    name = config.gguf.model_name
    write_text(file, text)
    if not config.gguf.ollama_create:
        return {}, " ".join(map(quoted, create_command(name, file)))
    create(name, file)
    from slimtune.export.ollama_answers import try_out  # and transformers

    return try_out(text, gguf, plan, config, adapter=adapter), f"ollama run {name}"


def create_command(name: str, file: Path) -> list[str]:
    return ["ollama", "create", name, "-f", near(file)]


def create(name: str, file: Path) -> None:
    """Runs `ollama create`; ResourceError with ollama's own last words if it fails."""
    done = subprocess.run(create_command(name, file), capture_output=True, text=True)
    if done.returncode:
        words = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise ResourceError(
            f"`{' '.join(create_command(name, file))}` ended with exit code {done.returncode}",
            words[-1] if words else "it gave no reason",
            "start `ollama serve` if it is not running, then run this command by hand: "
            "the GGUF file and the Modelfile are finished",
        )


def _relative(gguf: Path, folder: Path) -> PurePath:
    try:
        return PurePath(".") / gguf.relative_to(folder)
    except ValueError:
        return gguf
