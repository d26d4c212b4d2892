"""Prompt templates and the one renderer: messages to text, and the text cut around each answer."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NoReturn, TypedDict

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from slimtune.config.catalogues import names
from slimtune.errors import InputError, SettingsError
from slimtune.prompts.bounds import BoundedEnvironment, EndlessTemplate

_FOLDER = Path(__file__).parent / "templates"
OWN = "tokenizer"  # the name of a model's own template


class ChatMessage(TypedDict):
    role: str
    content: str


def template_names() -> list[str]:
    """The templates that ship with SlimTune; `tokenizer`, a model's own, comes on top."""
    return sorted(names("templates"))


def template(name: str) -> str:
    """The jinja source of a shipped template; SettingsError with the list for an unknown name."""
    known = template_names()
    if name not in known:
        raise SettingsError(
            f"prompt template {name!r}: unknown",
            f"known are {', '.join([*known, OWN])} ({OWN}: the model's own chat template)",
            f"choose one of {', '.join(known)}",
        )
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def render(
    messages: Sequence[ChatMessage],
    template: str,
    *,
    bos_token: str | None,
    eos_token: str | None,
    add_generation_prompt: bool = False,
) -> str:
    """The conversation as one text, by a template's jinja source, in jinja's sandbox.

    Raises InputError if the template refuses the messages, SettingsError if it is no valid jinja,
    EndlessTemplate if it would take all time or memory.
    """
    compiled = _compile(template)
    compiled.environment.start(messages)
    try:
        return compiled.render(
            {
                "messages": messages,
                "bos_token": bos_token or "",
                "eos_token": eos_token or "",
                "add_generation_prompt": add_generation_prompt,
            }
        )
    except EndlessTemplate:
        raise
    except RecursionError:
        compiled.environment.refuse("it calls itself without end", "a macro or block in it does")
    except MemoryError:
        compiled.environment.refuse("what it writes is too large", "the memory does not hold it")
    except Exception as error:  # a stranger's code: whatever Python says of a number and a text
        said = error if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        roles = ", ".join(str(message["role"]) for message in messages)
        raise InputError(
            f"a conversation of roles: {roles or '(none)'}",
            f"the prompt template refuses it: {said}",
            "let turns alternate user, assistant; at most one system message, first, or none",
        ) from error


def pieces(
    messages: Sequence[ChatMessage], template: str, *, bos_token: str | None, eos_token: str | None
) -> list[tuple[str, bool]]:
    """The rendered conversation as (text, supervised), cut at the start and end of each answer.

    An answer starts where the model is asked to speak and ends with its EOS; joined, the texts are
    `render(messages)`. Raises SettingsError if the template shows a turn differently once another
    follows it, for then no cut is the one the model meets later.
    """
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    whole = render(messages, template, **tokens)
    parts, done = [], 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:index], template, **tokens, add_generation_prompt=True)
        through = render(messages[: index + 1], template, **tokens)
        if not (whole.startswith(through) and through.startswith(before)):
            _refuse_template()
        start, end = len(before), _answer_end(through, len(before), eos_token)
        parts += [(whole[done:start], False), (whole[start:end], True)]
        done = end
    return [*parts, (whole[done:], False)] if done < len(whole) else parts


def _answer_end(text: str, start: int, eos_token: str | None) -> int:
    """Where the answer that starts at `start` ends: after its EOS, before blanks that follow it."""
    found = text.rfind(eos_token, start) if eos_token else -1
    if found >= 0 and not text[found + len(eos_token or "") :].strip():
        return found + len(eos_token or "")
    return max(start, len(text.rstrip()))


def _refuse_template() -> NoReturn:
    raise SettingsError(
        "prompt template: earlier turns change when later ones are added",
        "the text learned in training would not be the text met when serving",
        f"choose one of {', '.join(template_names())}",
    )


def _raise_exception(message: str) -> NoReturn:
    """What chat templates call to refuse a conversation."""
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %}` marks answers for trainers that need to be told; here it is what it holds.

    Answers are found by rendering, so templates with the mark and without it are trained alike.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compile(source: str) -> Template:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.compiled(source)
    except TemplateSyntaxError as error:
        line, why = error.lineno, str(error.message)
    except (RecursionError, MemoryError, SyntaxError) as error:  # Python's own compiler, too
        line, why = 1, f"it nests too deeply: {error}"
    raise SettingsError(
        f"prompt template, line {line}: not valid jinja",
        why,
        f"repair chat_template.jinja, or choose one of {', '.join(template_names())}",
    )
