"""The Modelfile: Ollama renders the very text that training rendered, and starts from our settings.

A model is exported with the prompt template that has a Go twin which renders alike. Ollama fills it
over `.Messages`, puts BOS before its tokens itself, and reads values bare, in `"…"` or in
`\"""…\"""`, without escapes. Runes that Go does not call printable vanish in silence (full-width
space, zero-width joiner), so they are replaced or refused here.
Rules: ollama/ollama parser/parser.go and template/template.go.
"""

import json
import logging
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

from slimtune import prompts
from slimtune.config.catalogues import facts
from slimtune.console import InputError, SettingsError, SlimTuneError
from slimtune.models.json_files import read_model_json
from slimtune.prompts import ChatMessage

_log = logging.getLogger(__name__)

# What a model may write when it starts the next turn itself; the end token needs no stop string.
STOPS: dict[str, list[str]] = facts("templates", "stops") | facts("twins", "stops")
_SHIPPED = Path(prompts.__file__).parent / "templates"
_TWINS = Path(__file__).parent / "twins"


def modelfile(
    gguf: PurePath,
    template: str,
    *,
    bos_token: str,
    eos_token: str,
    system: str = "",
    stops: Sequence[str] | None = None,
    num_ctx: int,
) -> str:
    """The text of a Modelfile; FROM gets `gguf` as it is, relative to the Modelfile's own folder.

    `template` is a shipped template's name or a jinja source that renders as one does; `stops`
    default to that one's. Raises SettingsError for a template without a Go twin, InputError for
    text Ollama cannot take.
    """
    name = twin(template)
    words = STOPS[name] if stops is None else stops
    source = _quoted("TEMPLATE", go_template(name, bos_token=bos_token, eos_token=eos_token))
    lines = [f"FROM {_quoted('FROM', _from(gguf))}", f"TEMPLATE {source}"]
    if system:
        lines.append(f"SYSTEM {_quoted('SYSTEM', _printable('SYSTEM', system))}")
    lines += [f"PARAMETER stop {_quoted('stop', _printable('stop', word))}" for word in words]
    lines.append(f"PARAMETER num_ctx {num_ctx}")
    return "\n".join(lines) + "\n"


def go_template(name: str, *, bos_token: str, eos_token: str) -> str:
    """The Go twin of a shipped template, with the model's own tokens bound to $bos and $eos."""
    bound = {"bos": bos_token, "eos": eos_token}
    tokens = [f"{{{{- ${name} := {json.dumps(token)} -}}}}\n" for name, token in bound.items()]
    files = [_SHIPPED / "trim.gotmpl", *(f / f"{name}.gotmpl" for f in (_SHIPPED, _TWINS))]
    return "".join([*tokens, *(f.read_text(encoding="utf-8") for f in files if f.is_file())])


def _from(gguf: PurePath) -> str:
    path = gguf.as_posix()
    return path if gguf.is_absolute() or path.startswith(".") else f"./{path}"


def _printable(where: str, text: str) -> str:
    """Blanks that Ollama would drop become spaces, with a word in the log; others are refused."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    odd = {char for char in text if not (char.isprintable() or char in "\n\t")}
    blanks = {char for char in odd if char.isspace() or unicodedata.category(char) == "Zs"}
    for char in sorted(blanks):
        _log.warning("Modelfile %s: U+%04X becomes a space, Ollama would drop it", where, ord(char))
        text = text.replace(char, " ")
    for char in sorted(odd - blanks):
        raise InputError(
            f"Modelfile {where}: U+{ord(char):04X} at character {text.index(char) + 1}",
            "Ollama drops characters that do not print, without a word",
            "remove it from the text",
        )
    return text


def _quoted(where: str, text: str) -> str:
    if '"""' in text:
        raise InputError(
            f'Modelfile {where}: it holds """',
            "Ollama's quotes know no escape",
            "reword the text",
        )
    if not text.strip():
        raise InputError(f"Modelfile {where}: empty text", "Ollama needs a value", "leave it out")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


_SYSTEM = ChatMessage(role="system", content="Be\n“brief”.")
_TURNS = [
    ChatMessage(role="user", content=" One?\n\n{2}"),
    ChatMessage(role="assistant", content="Two. "),
    ChatMessage(role="user", content="三?"),
    ChatMessage(role="assistant", content="3"),
    ChatMessage(role="user", content="4?"),
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
    source = prompts.resolve_template(name, own)
    if own is None or same(own, source):
        return own or source
    _log.warning("%s: exported with its own chat template, which is not %s", folder, name)
    return own


def own_template(folder: Path) -> str | None:
    """chat_template.jinja, or what an older folder keeps in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    found = read_model_json(config, optional=True).get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((one["template"] for one in found if one["name"] == "default"), None)
    return found


def twins() -> dict[str, str]:
    """Name -> jinja source of the templates with a Go twin: the shipped ones, and some models' own.

    Models' own (`twins/`): Llama-3, Qwen2 and Qwen2.5 Instruct, and Zephyr, which TinyLlama has.
    """
    own = sorted((Path(__file__).parent / "twins").glob("*.jinja"))
    known = {file.stem: file.read_text(encoding="utf-8") for file in own}
    return {name: prompts.template(name) for name in prompts.template_names()} | known


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


def _render(source: str, messages: list[ChatMessage]) -> str:
    asking = messages[-1]["role"] == "user"
    try:
        return prompts.render(messages, source, **_TOKENS, add_generation_prompt=asking)
    except SlimTuneError as error:
        return f"refused: {error.what}"
