"""The Modelfile: Ollama renders the very text that training rendered, and starts from our settings.

Ollama fills a Go template over `.Messages`, puts BOS before its tokens itself, and reads values
bare, in `"…"` or in `\"""…\"""`, without escapes. Runes that Go does not call printable vanish in
silence (full-width space, zero-width joiner), so they are replaced or refused here.
Rules: ollama/ollama parser/parser.go and template/template.go.
"""

import json
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath

from slimtune import prompts
from slimtune.console import InputError
from slimtune.export.templates import twin

log = logging.getLogger(__name__)

# What a model may write when it starts the next turn itself; the end token needs no stop string.
STOPS = {
    "llama2": ["[INST]"],
    "alpaca": ["### Instruction:"],
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|eot_id|>"],
    "qwen2": ["<|im_start|>", "<|im_end|>"],
    "qwen2_5": ["<|im_start|>", "<|im_end|>"],
    "zephyr": ["<|user|>", "<|system|>"],
}
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
        log.warning("Modelfile %s: U+%04X becomes a space, Ollama would drop it", where, ord(char))
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
