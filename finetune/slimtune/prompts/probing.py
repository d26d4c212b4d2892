"""What a chat template does, found by rendering: sources are compared by behaviour, not by text.

A template with turns (ChatML, Llama-3, Mistral, Zephyr, Gemma and what is like them) is taken apart
into the texts around its contents, a `Form`. A form renders as the template does, which is checked
on conversations with and without a system message, over turns, and with blanks; whatever differs
anywhere has no form. `export/modelfile.py` writes a form in Ollama's language.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from slimtune.errors import InputError, SlimTuneError
from slimtune.prompts.rendering import ChatMessage, render

BOS, EOS = "<s>", "</s>"  # for templates that are compared before a model is known
_S, _U, _A, _V = "\ue001", "\ue002", "\ue003", "\ue004"  # contents that no template writes
Shown = Callable[..., str]  # messages -> their text under the template in question


def _message(role: str, content: str) -> ChatMessage:
    return ChatMessage(role=role, content=content)


_SYSTEM = _message("system", "Be\n“brief”.")
_TURNS = [
    _message("user", " One?\n\n{2}"),
    _message("assistant", "Two. "),
    _message("user", "三?"),
    _message("assistant", "3"),
    _message("user", "4?"),
]
# Single turn, several turns, and answered ones; each with and without a system message.
_PROBES = [[*opening, *_TURNS[:n]] for n in (1, 2, 3, 4, 5) for opening in ([], [_SYSTEM])]


def same(one: str, other: str, bos_token: str = BOS, eos_token: str = EOS) -> bool:
    """Whether two jinja sources render every probe equally, with and without system, over turns."""
    if one == other:
        return True
    return _rendered(one, bos_token, eos_token) == _rendered(other, bos_token, eos_token)


def end_of_answer(source: str | None, eos_token: str | None, special: Sequence[str]) -> str | None:
    """The special token after an answer in a chat template where that is not EOS, else None.

    Qwen's base models name <|endoftext|> as EOS and end turns with <|im_end|>: what is trained
    would not be what stops the model.
    """
    if not source:
        return None
    turns = [_message("user", _U), _message("assistant", _A)]
    try:
        text = render(turns, source, bos_token=BOS, eos_token=eos_token)
    except SlimTuneError:
        return None  # whoever renders with it is told
    _, found, after = text.rpartition(_A)
    written = [token for token in special if token in after]
    if not found or not written or eos_token in written:
        return None
    return min(written, key=after.index)


def keeps_turns(source: str) -> bool:
    """Whether earlier turns stay as they are when later ones follow: else none can be learned.

    Qwen3's own template takes the thoughts out of earlier answers. SettingsError for no jinja.
    """
    tokens = {"bos_token": BOS, "eos_token": EOS}
    try:
        whole, earlier = (render(_TURNS[:n], source, **tokens) for n in (4, 2))
    except InputError:
        return True  # it refuses these turns: whoever has rows is told of theirs
    return whole.startswith(earlier)


@cache
def _rendered(source: str, bos_token: str, eos_token: str) -> Sequence[str]:
    return tuple(_render(source, messages, bos_token, eos_token) for messages in _PROBES)


def _render(source: str, messages: Sequence[ChatMessage], bos_token: str, eos_token: str) -> str:
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    asking = messages[-1]["role"] == "user"
    try:
        return render(messages, source, **tokens, add_generation_prompt=asking)
    except SlimTuneError as error:
        return f"refused: {error.what}"


@dataclass(frozen=True)
class Form:
    """The texts of a template around the contents of its turns; `trim` names trimmed roles.

    A conversation is `opening` (or `system[0]`, the system message, `system[1]`) and the first
    question, `asked`; for each answer `said[0]`, it, `said[1]`; `again` before each later
    question; `generation` where the model must speak. With `late` a system message stands in the
    last question, after what else precedes it, as Mistral has it. `system` is None where the
    template refuses one, or drops it.
    """

    opening: str
    system: tuple[str, str] | None
    late: bool
    asked: str
    said: tuple[str, str]
    again: str
    generation: str
    trim: frozenset[str]

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """What the template makes of a conversation that alternates and starts with a question."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages[1:] if system is not None else messages
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
        text = ""
        for place, turn in enumerate(turns):
            content = self._content(turn["role"], turn["content"])
            if turn["role"] == "assistant":
                text += self.said[0] + content + self.said[1]
                continue
            text += self._before(place == 0, place == last, system) + content + self.asked
        return text + (self.generation if turns[-1]["role"] == "user" else "")

    def without(self, bos: str) -> "Form":
        """The form less the BOS at its very start."""
        before = self.opening.removeprefix(bos)
        system = self.system
        if system is not None and not self.late:
            system = system[0].removeprefix(bos), system[1]
        return replace(self, opening=before, system=system)

    def _before(self, first: bool, last: bool, system: str | None) -> str:
        before = self.opening if first else self.again
        if system is None or self.system is None or not (last if self.late else first):
            return before
        said = self.system[0] + self._content("system", system) + self.system[1]
        return before + said if self.late else said

    def _content(self, role: str, text: str) -> str:
        return text.strip() if role in self.trim else text


@cache
def form_of(source: str, bos_token: str, eos_token: str) -> Form | None:
    """The form of a jinja source with the model's own tokens; None where it has none."""

    tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def shown(*messages: ChatMessage, ask: bool = False) -> str:
        return render(messages, source, **tokens, add_generation_prompt=ask)

    try:
        form = _taken_apart(shown)
        probes = [*_PROBES, *_blanks()] if form else []
        for messages in probes:
            if form.system is None and messages[0]["role"] == "system":
                continue
            if shown(*messages, ask=messages[-1]["role"] == "user") != form.render(messages):
                return None
    except SlimTuneError:
        return None
    return form


def _blanks() -> list[list[ChatMessage]]:
    """Conversations whose texts stand between blanks that `trim` takes away."""
    padded = [_message(one["role"], f"\t\u3000 {one['content']}\n ") for one in (_SYSTEM, *_TURNS)]
    return [padded[1:2], padded[:2], padded[1:4], padded[:4], padded]


def _taken_apart(shown: Shown) -> Form | None:
    """What a template seems to be, from one answered conversation and its parts."""
    user, answer, again = _message("user", _U), _message("assistant", _A), _message("user", _V)
    open_, asked = _cut(shown(user), _U)
    generation = shown(user, ask=True).removeprefix(open_ + _U + asked)
    said = _cut(shown(user, answer).removeprefix(open_ + _U + asked), _A)
    later = shown(user, answer, again).removeprefix(open_ + _U + asked + said[0] + _A + said[1])
    before, after = _cut(later, _V)
    if after != asked:
        return None
    system, late = _system(shown, open_)
    padded = {role: f"\t{mark}\t" for role, mark in _MARKS.items()}
    trim = {
        role
        for role, text in padded.items()
        if (role != "system" or system) and text not in shown(*_padded(role, text))
    }
    return Form(open_, system, late, asked, said, before, generation, frozenset(trim))


_MARKS = {"system": _S, "user": _U, "assistant": _A}


def _padded(role: str, text: str) -> list[ChatMessage]:
    turns = {"system": _S, "user": _U, "assistant": _A} | {role: text}
    wanted = ("system", "user", "assistant") if role == "system" else ("user", "assistant")
    return [_message(one, turns[one]) for one in wanted]


def _system(shown: Shown, opening: str) -> tuple[tuple[str, str] | None, bool]:
    """The texts around a system message, and whether it waits for the last question."""
    system = _message("system", _S)
    turns = [_message("user", _U), _message("assistant", _A), _message("user", _V)]
    try:
        single, several = shown(system, turns[0]), shown(system, *turns)
    except SlimTuneError:
        return None, False
    if _S not in single:
        return None, False
    before, after = _cut(single.split(_U)[0], _S)
    if several.index(_S) > several.index(_U):
        return (before.removeprefix(opening), after), True
    return (before, after), False


def _cut(text: str, mark: str) -> tuple[str, str]:
    before, _, after = text.partition(mark)
    return before, after
