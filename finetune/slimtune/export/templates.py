"""The prompt template a model is exported with, and the one with a Go twin that renders alike."""

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from slimtune import prompts
from slimtune.console import SettingsError, SlimTuneError
from slimtune.prompts import Message

log = logging.getLogger(__name__)

_SYSTEM = Message(role="system", content="Be\n“brief”.")
_TURNS = [
    Message(role="user", content=" One?\n\n{2}"),
    Message(role="assistant", content="Two. "),
    Message(role="user", content="三?"),
    Message(role="assistant", content="3"),
    Message(role="user", content="4?"),
]
# Single turn, several turns, and answered ones; each with and without a system message.
_PROBES = [[*opening, *_TURNS[:n]] for n in (1, 2, 3, 4, 5) for opening in ([], [_SYSTEM])]
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def chosen(folder: Path, name: str) -> str:
    """The jinja source a model is exported with: the one saved with it, else the settings' `name`.

    Training saves its template with the model, so a setting that says otherwise is a mistake: a
    line in the log says which of the two counts.
    """
    own = own_template(folder)
    source = prompts.resolve(name, own)
    if own is None or same(own, source):
        return own or source
    log.warning("%s: exported with its own chat template, which is not %s", folder, name)
    return own


def own_template(folder: Path) -> str | None:
    """chat_template.jinja, or what an older folder keeps in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    found = json.loads(config.read_text("utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several, by name
        found = next((one["template"] for one in found if one["name"] == "default"), None)
    return found


def twins() -> dict[str, str]:
    """Name -> jinja source of the templates with a Go twin: the shipped ones, and some models' own.

    Models' own (`twins/`): Llama-3, Qwen2 and Qwen2.5 Instruct, and Zephyr, which TinyLlama has.
    """
    own = sorted((Path(__file__).parent / "twins").glob("*.jinja"))
    known = {file.stem: file.read_text(encoding="utf-8") for file in own}
    return {name: prompts.template(name) for name in prompts.names()} | known


def twin(source: str) -> str:
    """The template with a Go twin that renders as `source` does: by name, or by its behaviour.

    Raises SettingsError where there is none, so that no Go template is known to be equal.
    """
    known = twins()
    for name, text in known.items():
        if source == name or same(source, text):
            return name
    raise SettingsError(
        "prompt template: no twin for Ollama",
        "Ollama renders Go templates, and this one renders otherwise than "
        f"{', '.join(known)}, of which a Go twin is proven equal",
        "leave out --create-modelfile and write TEMPLATE by hand, or train with one of those",
    )


def same(one: str, other: str) -> bool:
    """Whether two jinja sources render every probe equally, with and without system, over turns."""
    return one == other or _rendered(one) == _rendered(other)


@cache
def _rendered(source: str) -> Sequence[str]:
    return tuple(_render(source, messages) for messages in _PROBES)


def _render(source: str, messages: list[Message]) -> str:
    asking = messages[-1]["role"] == "user"
    try:
        return prompts.render(messages, source, **_TOKENS, add_generation_prompt=asking)
    except SlimTuneError as error:
        return f"refused: {error.what}"
