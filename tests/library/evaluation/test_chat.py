"""The chat as a person meets it: lines in, text out, over an engine that says what it was asked."""

import io
import signal
from collections.abc import Iterator

import pytest

from slimtune.evaluation.chat import Chat
from slimtune.evaluation.engines import Transformers
from slimtune.prompts import encode_prompt, template

LLAMA2 = template("llama2")


class Parrot:
    """Streams the number of each prompt it gets, in pieces; Ctrl-C comes where a test wants it."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.prompts: list[list[int]] = []
        self.interrupt_after: int | None = None

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
        self.prompts.append(prompt)
        for place, piece in enumerate([" answer", " ", "number", f" {len(self.prompts)}"]):
            if place == self.interrupt_after:
                signal.raise_signal(signal.SIGINT)
            yield piece


@pytest.fixture
def parrot(tokenizer) -> Parrot:
    return Parrot(tokenizer)


def talk(engine, lines: str, **settings) -> tuple[Chat, str]:
    output = io.StringIO()
    chat = Chat(engine, LLAMA2, output=output, **settings)
    chat.run(io.StringIO(lines))
    return chat, output.getvalue()


def test_history_goes_into_the_next_prompt(parrot, tokenizer):
    chat, shown = talk(parrot, "w5 w6\nw7\n/exit\nw8\n")
    turns = [
        {"role": "user", "content": "w5 w6"},
        {"role": "assistant", "content": "answer number 1"},
        {"role": "user", "content": "w7"},
    ]
    assert parrot.prompts == [
        encode_prompt(tokenizer, turns[:1], LLAMA2),
        encode_prompt(tokenizer, turns, LLAMA2),
    ]
    assert "> answer number 1\n> answer number 2\n" in shown
    assert len(chat.messages) == 4


def test_reset_and_system_begin_anew(parrot, tokenizer):
    talk(parrot, "w5\n/reset\nw6\n/system w9\nw6\n")
    bare = [{"role": "user", "content": "w6"}]
    told = [{"role": "system", "content": "w9"}, *bare]
    assert parrot.prompts[1:] == [encode_prompt(tokenizer, m, LLAMA2) for m in (bare, told)]


def test_interrupt_stops_the_answer_and_not_the_program(parrot):
    parrot.interrupt_after = 3
    chat, shown = talk(parrot, "w5\nw6\n")
    assert shown.count("(stopped)") == 2
    assert chat.messages[1] == {"role": "assistant", "content": "answer number"}


def test_interrupt_at_the_prompt_says_how_to_leave(parrot):
    class Impatient(io.StringIO):
        presses = 1

        def readline(self, *_) -> str:
            if self.presses:
                self.presses -= 1
                raise KeyboardInterrupt
            return super().readline()

    output = io.StringIO()
    Chat(parrot, LLAMA2, output=output).run(Impatient("w5\n"))
    assert "(/exit leaves)" in output.getvalue() and "answer number 1" in output.getvalue()


def test_unknown_command_is_not_sent_to_the_model_but_a_path_is(parrot):
    _, shown = talk(parrot, "/rest\n/etc/hosts w5\n\n/help\n")
    assert "/rest: no such command" in shown and "/system TEXT" in shown
    assert len(parrot.prompts) == 1


def test_a_long_conversation_loses_its_oldest_turns(parrot):
    chat, shown = talk(parrot, "w5 w6 w7 w8\n" * 6, max_length=60, max_new_tokens=20)
    assert "oldest turn is forgotten" in shown
    assert max(map(len, parrot.prompts)) <= 40
    assert chat.messages[-1]["content"] == "answer number 6"


def test_a_real_model_streams_what_it_generates(model, tokenizer):
    engine = Transformers(model, tokenizer)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "w5 w6"}], LLAMA2)
    _, shown = talk(engine, "w5 w6\n", max_new_tokens=10)
    (answer,) = engine.generate([prompt], 10)
    assert answer.text and f"> {answer.text}" in shown.replace("> >", ">")
