"""A chat on the terminal with any of the candidates, and what can be typed in it but questions.

`hold_chat` is what the script runs; `talk` is the loop, until /exit; a command is one function and
one entry of `COMMANDS`, from which /help is made.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from slimtune.artifacts import system_prompt_for
from slimtune.chat.partner import Chat, Partner, terminal_input
from slimtune.config import Config, GenerationSection
from slimtune.console import note
from slimtune.errors import SettingsError, SlimTuneError
from slimtune.evaluation import candidates
from slimtune.evaluation.fairness import template_of
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import Engine, open_engine
from slimtune.inference.questions import Candidate
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import AT_ONCE, ServerClient
from slimtune.settings.foreign_flags import ours
from slimtune.settings.refused_values import expected
from slimtune.settings.yaml_file import scalar

# What people type to leave: ours, Ollama's, a shell's and Python's.
_LEAVE = ("/exit", "/quit", "/bye", "exit", "quit", "exit()", "quit()")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_new_tokens", "seed")
_CONTEXT = 2048  # tokens of a conversation


def hold_chat(chosen: Sequence[Candidate], config: Config) -> None:
    """Chat on stdin and stdout, first with the last of `chosen`."""
    last = chosen[-1]
    if config.options.dry_run:
        files = " + ".join(part for part in (last.reference, last.adapter) if part)
        note(f"dry run: would chat with {last.label} ({files})")
        return
    partners = _partners(chosen, config)
    system = system_prompt_for(config, *map(Path, candidates.paths([last])))
    generation = candidates.with_decoding(config).generation
    decoding = Decoding.of(generation)
    chat = Chat(partners, output=sys.stdout, decoding=decoding, system=system, max_length=_CONTEXT)
    note(_choosing(decoding))
    note(f"chatting with {last.label}")
    try:
        talk(chat, terminal_input())
    finally:
        chat.close()


def _choosing(decoding: Decoding) -> str:
    """How answers are chosen, and how to have it otherwise."""
    changed = GenerationSection(**_sampling(decoding)).words
    if decoding.plain:
        return "answers are greedy: always the likeliest token; /set temperature 0.7 draws them"
    return f"answers are chosen by {changed}; /set changes that"


def _sampling(decoding: Decoding) -> dict[str, float]:
    return {name: getattr(decoding, name) for name in SAMPLING}


def _partners(chosen: Sequence[Candidate], config: Config) -> list[Partner]:
    """Each is asked in its own template: a talk is no comparison."""
    return [
        Partner(
            label=one.label,
            template=_template(one, config),
            load=partial(_open, one, config),
        )
        for one in chosen
    ]


def _template(candidate: Candidate, config: Config) -> str:
    """A server shows none of its own and is sent messages."""
    if candidate.kind == "server":
        return ""
    return template_of(candidate) or candidates.comparison_template(config)


def _open(candidate: Candidate, config: Config) -> Engine | ServerClient:
    if candidate.kind == "server":
        return ServerClient(Server.of(candidate.reference), pauses=AT_ONCE)
    return open_engine(candidate, config.model, _CONTEXT)


def talk(chat: Chat, source: TextIO) -> None:
    """Reads lines until /exit or the end of `source`: commands, or something to say.

    Raises what loading the first model raises; errors after that are shown, and the talk goes on.
    """
    chat.engine(chat.speakers[0])
    chat.tell("/help lists the commands.")
    while True:
        try:
            chat.say("> ")
            line = source.readline()
        except KeyboardInterrupt:
            chat.tell("\n(/exit leaves)")
            continue
        if not line or line.strip().lower() in _LEAVE:
            return
        try:
            _take(chat, line.strip())
        except (SlimTuneError, OSError) as error:
            chat.tell(str(error))


def _take(chat: Chat, line: str) -> None:
    """Runs a command, or asks the model."""
    word, _, rest = line.partition(" ")
    if word in COMMANDS:
        COMMANDS[word].run(chat, rest.strip())
    elif word.startswith("/") and word[1:].isalpha():
        chat.tell(f"{word}: no such command; /help lists them")
    elif line:
        chat.ask(line)


def reset(chat: Chat, _: str) -> None:
    for history in chat.histories.values():
        history.clear()
    chat.tell("conversation forgotten")


def system(chat: Chat, text: str) -> None:
    chat.system = text
    for history in chat.histories.values():
        history.clear()
    chat.tell("system message set" if text else "no system message")


def undo(chat: Chat, _: str) -> None:
    taken = [history[-2]["content"] for history in chat.histories.values() if history]
    for history in chat.histories.values():
        del history[-2:]
    chat.tell(f"taken back: {taken[0]}" if taken else "nothing to take back")


def set_decoding(chat: Chat, words: str) -> None:
    """`/set temperature 0.7`; Ollama's `/set parameter temperature 0.7` is understood as well."""
    name, _, value = words.removeprefix("parameter ").strip().partition(" ")
    name = next((one.partition(".")[2] for one in ours(name)), name.replace("-", "_"))
    if words and (name not in SAMPLING or not value):
        raise SettingsError(
            f"/set {words}: not a setting of this chat",
            f"there are {', '.join(SAMPLING)}",
            "for example /set temperature 0.7",
        )
    if words:
        try:
            settings = GenerationSection.model_validate({name: scalar(value.strip())})
        except ValidationError as error:
            why, now = expected(error.errors()), f"it stays {getattr(chat.decoding, name)}"
            raise SettingsError(f"/set {words}: refused", why, now) from error
        changed = getattr(Decoding.of(settings), name)
        chat.decoding = replace(chat.decoding, **{name: changed})
    told = ", ".join(f"{name} {value:g}" for name, value in _sampling(chat.decoding).items())
    chat.tell(f"{told}{_NO_DRAW if chat.decoding.greedy else ''}")


_NO_DRAW = "; at temperature 0 the likeliest token is taken, whatever top_k, top_p and min_p are"


def save_chat(chat: Chat, name: str) -> None:
    """One line of JSON a speaker, in the `messages` format."""
    spoken = {label: chat.conversation(label) for label in chat.speakers if chat.histories[label]}
    if not name or not spoken:
        chat.tell("/save FILE, once something was said")
        return
    file = Path(name).expanduser()
    with file.open("a", encoding="utf-8") as handle:
        for label, messages in spoken.items():
            row = {"model": label, "messages": messages}
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    chat.tell(f"added to {file}")


def model(chat: Chat, name: str) -> None:
    if not name:
        now = " and ".join(chat.speakers)
        chat.tell(f"there are {', '.join(chat.partners)}; you are talking to {now}")
        return
    _require_partner(chat, name)
    chat.let(name)
    chat.tell(f"talking to {name}")


def both(chat: Chat, name: str) -> None:
    speaker = chat.speakers[0]
    others = [label for label in chat.partners if label != speaker]
    if not others:
        chat.tell("there is only one model; start with --models to have more")
        return
    _require_partner(chat, name or others[0])
    if (name or others[0]) == speaker:
        chat.tell(f"you are talking to {name} already; name another")
        return
    chat.let(speaker, name or others[0])
    chat.tell(f"talking to {' and '.join(chat.speakers)}; /model NAME goes back to one")


def _require_partner(chat: Chat, name: str) -> None:
    if name not in chat.partners:
        raise SettingsError(
            f"/model {name}: no such model here",
            f"there are {', '.join(chat.partners)}",
            "name one of these, or start again with --models",
        )


def show_help(chat: Chat, _: str) -> None:
    lines = [f"{command.usage:<16}{command.does}\n" for command in COMMANDS.values()]
    chat.say("".join([*lines, *_KEYS]))


@dataclass(frozen=True)
class Command:
    """What runs, and its line of /help."""

    run: Callable[[Chat, str], None]
    usage: str
    does: str


COMMANDS: dict[str, Command] = {
    "/model": Command(model, "/model NAME", "talk to another model (alone: which there are)"),
    "/both": Command(
        both, "/both NAME", "ask that model too, side by side (alone: the first other one)"
    ),
    "/undo": Command(undo, "/undo", "take back the last question and its answer"),
    "/reset": Command(reset, "/reset", "forget the conversation"),
    "/system": Command(
        system,
        "/system TEXT",
        "set the system message (alone: remove it), and begin anew",
    ),
    "/set": Command(
        set_decoding,
        "/set NAME VALUE",
        "how to choose answers, as temperature 0.7 (alone: as now)",
    ),
    "/save": Command(
        save_chat, "/save FILE", "add the conversation to FILE, a row for prepare_data.py"
    ),
    "/help": Command(show_help, "/help", "this list"),
}
# What the loop itself understands.
_KEYS = (
    "/exit           leave (so do /bye, quit and Ctrl-D)\n",
    "Ctrl-C stops an answer; twice, it leaves.\n",
)
