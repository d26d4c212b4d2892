"""Ollama's side of an export: the Modelfile beside the user, `ollama create`, and one question."""

import json
import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from slimtune.artifacts import not_without_overwrite, system_prompt_for
from slimtune.artifacts.files import write_text
from slimtune.config import Config
from slimtune.console import ResourceError, SettingsError, near
from slimtune.export.modelfile import modelfile
from slimtune.export.plan import GgufPlan
from slimtune.export.proof import proof_rows, trained_in
from slimtune.models.ollama_store import ollama_address, require_name
from slimtune.models.tokenizer_files import special_tokens
from slimtune.prompts import ChatMessage

_log = logging.getLogger(__name__)

_ANSWER_TOKENS = 64
_CONTEXT = 4096  # Ollama reserves memory for every token of the context


@dataclass(frozen=True)
class Answer:
    """What Ollama said, and how many tokens it made of the prompt."""

    text: str
    prompt_tokens: int | None


def require_target(file: Path, config: Config) -> None:
    """Before the work: raises SettingsError for a name that Ollama does not take, and for a
    Modelfile that is there already and may not be replaced; ResourceError if `ollama create` is to
    be run and there is no ollama.
    """
    require_name(config.gguf.model_name)
    if file.exists() and not config.options.overwrite:
        yours = SettingsError(
            f"{near(file)}: exists already",
            "it may hold changes of yours",
            "move it away, or add --overwrite",
        )
        not_without_overwrite(yours, config)
    if config.gguf.ollama_create and shutil.which("ollama") is None:
        raise ResourceError(
            "gguf.ollama_create: there is no ollama on PATH",
            "the model cannot be handed over to a program that is not installed",
            "install it from ollama.com, or use --create-modelfile alone and create it elsewhere",
        )


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


def write_modelfile(file: Path, text: str) -> None:
    write_text(file, text)


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


def try_out(plan: GgufPlan, config: Config) -> str:
    """Asks the new model one prompt and says what it answered, and whether it read training's ids.

    A different number of tokens is a warning: Ollama's templates and ours are proven equal, but not
    for the version that is installed here.
    """
    from slimtune import prompts
    from slimtune.models import tokenizers

    conversation = proof_rows(config, plan.template)[0]
    first = next((i for i, m in enumerate(conversation) if m["role"] == "assistant"), None)
    asked, system = list(conversation[:first]), system_prompt_for(config, trained_in(config))
    answer = ask(config.gguf.model_name, asked)
    if system and asked[0]["role"] != "system":  # Ollama puts the Modelfile's SYSTEM first
        asked.insert(0, ChatMessage(role="system", content=system))
    expected = len(
        prompts.encode_prompt(tokenizers.load_tokenizer(plan.folder), asked, plan.template)
    )
    if answer.prompt_tokens not in (None, expected):
        _log.warning(
            "Ollama made %s tokens of the prompt, training %d: compare `ollama show --template %s` "
            "with the Modelfile",
            answer.prompt_tokens,
            expected,
            config.gguf.model_name,
        )
    return f"{answer.text.strip()!r} to {asked[-1]['content']!r}"


def ask(name: str, messages: Sequence[ChatMessage], patience: float = 300.0) -> Answer:
    """Ollama's greedy answer to a conversation, through its API; ResourceError without one."""
    body = {
        "model": name,
        "messages": list(messages),
        "stream": False,
        "options": {"temperature": 0, "num_predict": _ANSWER_TOKENS},
    }
    request = Request(
        f"{ollama_address()}/api/chat",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        # No proxy of the environment: the server is this machine's.
        with build_opener(ProxyHandler({})).open(request, timeout=patience) as reply:
            found = json.load(reply)
        return Answer(found["message"]["content"], found.get("prompt_eval_count"))
    except (URLError, OSError, ValueError, KeyError) as error:
        raise ResourceError(
            f"{ollama_address()}: Ollama created {name} and does not answer",
            f"{type(error).__name__}: {error}",
            f"start `ollama serve`, then try `ollama run {name}`",
        ) from error


def _relative(gguf: Path, folder: Path) -> PurePath:
    try:
        return PurePath(".") / gguf.relative_to(folder)
    except ValueError:
        return gguf
