"""Prompt templates in Ollama's language: the shipped ones' twins, and any form written out in Go.

Ollama fills a template over `.Messages` and `.System` (ollama/ollama template/template.go) and puts
BOS before its tokens itself, where the GGUF says so: no template here writes that one.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from slimtune import prompts
from slimtune.config.catalogues import facts
from slimtune.models.tokenizer_files import SpecialTokens, template_facts
from slimtune.prompts import Form

# What a model may write when it starts the next turn itself; the end token needs no stop string.
STOPS: dict[str, list[str]] = facts("templates", "stops")
_SHIPPED = Path(prompts.__file__).parent / "templates"
_TRIM = (_SHIPPED / "trim.gotmpl").read_text(encoding="utf-8")
_MARK = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")  # <|im_start|>, <start_of_turn>, [INST]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Twin:
    """A chat template in Go, and its stop strings; `takes_system` is False where none is shown."""

    text: str
    stops: list[str]
    takes_system: bool = True


def chosen(folder: Path, name: str) -> str:
    """The jinja source a model is exported with: the one saved with it, else the settings' `name`.

    Training saves its template with the model, so a setting that says otherwise is a mistake: a
    line in the log says which of the two counts.
    """
    known = template_facts(folder)
    if known.own is None:
        return prompts.resolve_template(name, *known)
    if name != prompts.AUTO and not prompts.same(known.own, prompts.resolve_template(name, *known)):
        _log.warning("%s: exported with its own chat template, which is not %s", folder, name)
    return known.own


def twin(source: str, tokens: SpecialTokens) -> Twin:
    """The Go template that renders as the jinja `source` does: found by behaviour, not by its text.

    A shipped template has its twin; every other is taken apart by probing (`prompts.form_of`).
    Raises SettingsError where that fails: no Go template is known to be equal.
    """
    name = prompts.shipped_as(source, tokens.puts_bos, tokens.bos, tokens.eos)
    if name is not None:
        return Twin(shipped(name, tokens), STOPS[name])
    form = prompts.form_of(source, tokens.bos, tokens.eos)
    if form is None:
        raise prompts.no_twin()
    written = form.without(tokens.bos) if tokens.puts_bos else form
    return Twin(write_form(written), _stops(form, tokens.eos), form.system is not None)


def shipped(name: str, tokens: SpecialTokens) -> str:
    """The Go twin of a shipped template, with the model's own tokens bound to $bos and $eos."""
    bound = {"bos": tokens.bos if tokens.puts_bos else "", "eos": tokens.eos}
    lines = [f"{{{{- ${key} := {json.dumps(token)} -}}}}\n" for key, token in bound.items()]
    return "".join([*lines, _TRIM, (_SHIPPED / f"{name}.gotmpl").read_text(encoding="utf-8")])


def write_form(form: Form) -> str:
    """A form as a Go template: the same texts around the same contents."""
    opening, first, waiting = _say(form.opening), _say(form.opening), ""
    if form.system is not None:
        system = _content("$.System", "system" in form.trim)
        shown = _say(form.system[0]) + system + _say(form.system[1])
        if form.late:
            waiting = f"{{{{- if and $.System (eq $place $asked) -}}}}{shown}{{{{- end -}}}}"
        else:
            first = f"{{{{- if $.System -}}}}{shown}{{{{- else -}}}}{opening}{{{{- end -}}}}"
    question = _content("$turn.Content", "user" in form.trim)
    answer = _content("$turn.Content", "assistant" in form.trim)
    lines = [
        '{{- $first := true -}}{{- $asked := 0 -}}{{- $last := "" -}}',
        "{{- range $place, $turn := .Messages -}}"
        '{{- if eq $turn.Role "user" -}}{{- $asked = $place -}}{{- end -}}{{- end -}}',
        "{{- range $place, $turn := .Messages -}}",
        '    {{- if eq $turn.Role "user" -}}',
        f"        {{{{- if $first -}}}}{first}{{{{- else -}}}}{_say(form.again)}{{{{- end -}}}}",
        f"        {waiting}{question}{_say(form.asked)}{{{{- $first = false -}}}}",
        '    {{- else if eq $turn.Role "assistant" -}}',
        f"        {_say(form.said[0])}{answer}{_say(form.said[1])}",
        "    {{- end -}}",
        "    {{- $last = $turn.Role -}}",
        "{{- end -}}",
        f'{{{{- if ne $last "assistant" -}}}}{_say(form.generation)}{{{{- end -}}}}',
    ]
    return (_TRIM if form.trim else "") + "\n".join(lines) + "\n"


def _say(text: str) -> str:
    """An action that writes `text`, "" for nothing."""
    return f"{{{{- {_quoted(text)} -}}}}" if text else ""


def _content(name: str, trim: bool) -> str:
    return f'{{{{- template "trim" {name} -}}}}' if trim else f"{{{{- {name} -}}}}"


def _quoted(text: str) -> str:
    """A Go string in which all that Ollama's parser would drop is escaped."""
    named = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
    return '"' + "".join(named.get(char) or _escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _stops(form: Form, eos: str) -> list[str]:
    """What opens a turn and what ends an answer, as far as it looks like a token."""
    marks = _MARK.findall(form.again)[:1] + _MARK.findall(form.said[1])
    return [mark for mark in dict.fromkeys(marks) if mark != eos]
