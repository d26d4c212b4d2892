"""Which prompt template a model gets: its own comes first, and another choice is said aloud."""

import logging
from collections.abc import Collection

from slimtune.errors import SettingsError
from slimtune.prompts.encoding import Tokenizer, puts_bos
from slimtune.prompts.probing import form_of, keeps_turns, same
from slimtune.prompts.rendering import OWN, template, template_names

AUTO = "auto"
_CHATML = "<|im_start|>"  # a vocabulary with this token is made for ChatML
_NO_BOS = "{%- set bos_token = '' -%}\n"

_log = logging.getLogger(__name__)


def resolve_template(
    name: str, own: str | None = None, puts_bos: bool = True, tokens: Collection[str] = ()
) -> str:
    """The jinja source of `name`: a shipped one's, `tokenizer` for `own`, or what `auto` takes.

    `own` is the model's chat template, `tokens` what its vocabulary has. `auto` takes the own one,
    else chatml where the vocabulary is made for it, else llama2. Where the tokenizer puts no BOS in
    front a shipped template writes none, whoever renders it. Raises SettingsError for an unknown
    name, or where `tokenizer` has nothing to mean.
    """
    if name == AUTO:
        name = _automatic(own, tokens)
    if name != OWN:
        return spelled(name, puts_bos)
    if own is None:
        raise SettingsError(
            f"prompt template {OWN!r}: this model has none",
            "its folder holds no chat_template.jinja and its tokenizer names no template",
            f"choose one of {', '.join(template_names())}",
        )
    return own


def template_of(name: str, tokenizer: Tokenizer) -> str:
    """`resolve_template` for a loaded tokenizer."""
    own, tokens = tokenizer.chat_template, tokenizer.get_vocab()
    return resolve_template(name, own, puts_bos(tokenizer), tokens)


def spelled(name: str, puts_bos: bool) -> str:
    """The source of a shipped template for a tokenizer that puts BOS in front, or does not."""
    source = template(name)
    return source if puts_bos else _NO_BOS + source


def shipped_as(source: str, puts_bos: bool, bos: str, eos: str) -> str | None:
    """The shipped template that a source (or a name) is: by its behaviour, not by its text."""
    for name in template_names():
        if source == name or same(source, spelled(name, puts_bos), bos, eos):
            return name
    return None


def no_twin() -> SettingsError:
    """What is said of a template that Ollama cannot be given."""
    return SettingsError(
        "prompt template: no twin for Ollama",
        "Ollama renders Go templates; this one renders as none of "
        f"{', '.join(template_names())}, nor is it made of turns between fixed texts",
        "train with --prompt-template chatml (or llama2, alpaca); or leave out --create-modelfile "
        "and serve the GGUF with llama-server, which renders this template itself; or leave it out "
        "and write TEMPLATE into a Modelfile by hand",
    )


def tell_choice(name: str, tokenizer: Tokenizer, *, modelfile: bool = False) -> None:
    """Says which template a run takes; a caution where it is not the model's own.

    The same for one that no Modelfile can hold: SettingsError where the settings want a `modelfile`
    of it, for after hours of training it is late.
    """
    own, tokens = tokenizer.chat_template, tokenizer.get_vocab()
    chosen = _automatic(own, tokens) if name == AUTO else name
    if own is None:
        _log.info("prompt template: %s, for the model has none of its own", chosen)
        return
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    first = puts_bos(tokenizer)
    source = resolve_template(chosen, own, first, tokens)
    if not same(own, source, bos, eos):
        why = "the model's own changes earlier turns when later ones follow: none can be learned so"
        if name != AUTO:
            why = "the model knows its own chat template better; --prompt-template auto takes that"
        _log.warning("caution: prompt template %s is not the model's own (%s)", chosen, why)
        return
    _log.info("prompt template: the model's own")
    if shipped_as(own, first, bos, eos) is None and form_of(own, bos, eos) is None:
        if modelfile:
            raise no_twin()
        _log.warning("caution: %s. Before a --create-modelfile: %s", no_twin().what, no_twin().cure)


def _automatic(own: str | None, tokens: Collection[str]) -> str:
    if own is not None and keeps_turns(own):
        return OWN
    return "chatml" if _CHATML in tokens else "llama2"
