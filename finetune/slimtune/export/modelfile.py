"""The Modelfile: Ollama renders the very text that training rendered, and starts from our settings.

A model is exported with the prompt template that has a Go twin which renders alike. Ollama fills it
over `.Messages`, puts BOS before its tokens itself, and reads values bare, in `"…"` or in
`\"""…\"""`, without escapes. Runes that Go does not call printable vanish in silence (full-width
space, zero-width joiner), so they are replaced or refused here.
Rules: ollama/ollama parser/parser.go and template/template.go.
"""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath

from slimtune.config import GenerationSection
from slimtune.errors import InputError
from slimtune.export.go_template import twin
from slimtune.models.served_decoding import ollama_parameters
from slimtune.models.tokenizer_files import SpecialTokens

_log = logging.getLogger(__name__)


_GREEDY = GenerationSection()
LAST_WITH_ADAPTER = "0.34.0"  # of Ollama's versions: later ones refuse the line ADAPTER
_ADAPTER_NOTE = (
    f"# Ollama up to {LAST_WITH_ADAPTER} takes the next line; for later ones merge the adapter."
)


def modelfile(
    gguf: PurePath,
    template: str,
    tokens: SpecialTokens,
    *,
    system: str = "",
    stops: Sequence[str] | None = None,
    num_ctx: int,
    generation: GenerationSection = _GREEDY,
    adapter: PurePath | None = None,
) -> str:
    """The text of a Modelfile; FROM gets `gguf` as it is, relative to the Modelfile's own folder.

    `adapter` is a GGUF that Ollama puts on it, up to its version 0.34.0.

    `generation` says how Ollama shall choose answers: its own defaults sample.

    `template` is a shipped template's name or a jinja source; `stops` default to its own. Raises
    SettingsError for a template without a Go twin, InputError for text Ollama cannot take, and for
    a system message that the template does not show.
    """
    go = twin(template, tokens)
    if system and not go.takes_system:
        raise InputError(
            "Modelfile SYSTEM: the prompt template shows no system message",
            "what the model should be told would vanish",
            "leave out the system prompt, or put it into the questions",
        )
    lines = [f"FROM {_quoted('FROM', _from(gguf))}"]
    if adapter is not None:
        lines += [_ADAPTER_NOTE, f"ADAPTER {_quoted('ADAPTER', _from(adapter))}"]
    lines.append(f"TEMPLATE {_quoted('TEMPLATE', go.text)}")
    if system:
        lines.append(f"SYSTEM {_quoted('SYSTEM', _printable('SYSTEM', system))}")
    words = go.stops if stops is None else stops
    lines += [f"PARAMETER stop {_quoted('stop', _printable('stop', word))}" for word in words]
    lines.append(f"PARAMETER num_ctx {num_ctx}")
    chosen = ollama_parameters(generation, num_ctx)
    lines += [f"PARAMETER {name} {value:.10g}" for name, value in chosen.items()]
    return "\n".join(lines) + "\n"


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
