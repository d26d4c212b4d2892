"""The chat as a person meets it: lines in, text out, over an engine that says what it was asked."""

import io
import random
import re
import signal
from collections.abc import Iterator

import pytest
from rich.cells import cell_len

from slimtune.chat.conversation import COMMANDS, _choosing
from slimtune.chat.conversation import talk as talk_in
from slimtune.chat.partner import Chat, Partner
from slimtune.chat.side_by_side import SideBySide
from slimtune.data.rows import read_rows
from slimtune.errors import InputError
from slimtune.inference.answers import in_order
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import TransformersEngine
from slimtune.prompts import encode_prompt, template
from slimtune.wrapping import wrap

LLAMA2 = template("llama2")


class Parrot:
    """Streams the number of each prompt it gets, in pieces; Ctrl-C comes where a test wants it."""

    context = 10_000

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.closed = False
        self.prompts: list[list[int]] = []
        self.interrupt_after: int | None = None

    def stream(self, prompt: list[int], decoding: Decoding) -> Iterator[str]:
        self.prompts.append(prompt)
        for place, piece in enumerate([" answer", " ", "number", f" {len(self.prompts)}"]):
            if place == self.interrupt_after:
                signal.raise_signal(signal.SIGINT)
            yield piece

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def parrot(tokenizer) -> Parrot:
    return Parrot(tokenizer)


def talk(engine, lines: str, others=(), **settings) -> tuple[Chat, str]:
    """A conversation with `engine`; `others` can be called by number."""
    output = io.StringIO()
    labels = {f"other{number}": other for number, other in enumerate(others)} | {"it": engine}
    partners = [Partner(label, LLAMA2, lambda one=one: one) for label, one in labels.items()]
    chat = Chat(partners, output=output, **{"decoding": Decoding(512)} | settings)
    talk_in(chat, io.StringIO(lines))
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
    assert len(chat.histories["it"]) == 4


def test_reset_and_system_begin_anew(parrot, tokenizer):
    talk(parrot, "w5\n/reset\nw6\n/system w9\nw6\n")
    bare = [{"role": "user", "content": "w6"}]
    told = [{"role": "system", "content": "w9"}, *bare]
    assert parrot.prompts[1:] == [encode_prompt(tokenizer, m, LLAMA2) for m in (bare, told)]


def test_interrupt_stops_the_answer_and_not_the_program(parrot):
    parrot.interrupt_after = 3
    chat, shown = talk(parrot, "w5\nw6\n")
    assert shown.count("(stopped)") == 2
    assert chat.histories["it"][1] == {"role": "assistant", "content": "answer number"}


def test_interrupt_at_the_prompt_says_how_to_leave(parrot):
    class Impatient(io.StringIO):
        presses = 1

        def readline(self, *_) -> str:
            if self.presses:
                self.presses -= 1
                raise KeyboardInterrupt
            return super().readline()

    output = io.StringIO()
    chat = Chat([Partner("it", LLAMA2, lambda: parrot)], output=output, decoding=Decoding(512))
    talk_in(chat, Impatient("w5\n"))
    assert "(/exit leaves)" in output.getvalue() and "answer number 1" in output.getvalue()


def test_unknown_command_is_not_sent_to_the_model_but_a_path_is(parrot):
    _, shown = talk(parrot, "/rest\n/etc/hosts w5\n\n/help\n")
    assert "/rest: no such command" in shown and "/system TEXT" in shown
    assert len(parrot.prompts) == 1


def test_a_long_conversation_loses_its_oldest_turns(parrot):
    chat, shown = talk(parrot, "w5 w6 w7 w8\n" * 6, max_length=60, decoding=Decoding(20))
    assert "oldest turn is forgotten" in shown
    assert max(map(len, parrot.prompts)) <= 40
    assert chat.histories["it"][-1]["content"] == "answer number 6"


def test_a_real_model_streams_what_it_generates(model, tokenizer):
    engine = TransformersEngine(model, tokenizer)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "w5 w6"}], LLAMA2)
    _, shown = talk(engine, "w5 w6\n", decoding=Decoding(10))
    (answer,) = in_order(engine.generate([prompt], Decoding(10)))
    assert answer.text and f"> {answer.text}" in shown.replace("> >", ">")


def test_each_answer_of_a_chat_draws_anew(model, tokenizer):
    """And a second talk with the same seed says the same."""
    hot = Decoding(10, temperature=2.0, seed=5)
    engine = TransformersEngine(model, tokenizer)
    shown = [talk(engine, "w5\n/undo\nw5\n/undo\nw5\n", decoding=hot)[1] for _ in range(2)]
    lines = [line for line in shown[0].splitlines() if line.startswith("> ")]
    answers = [line for line in lines if "taken back" not in line]
    assert shown[0] == shown[1] and len(set(answers)) > 1


def test_undo_takes_back_the_last_question_and_answer(parrot, tokenizer):
    _, shown = talk(parrot, "w5\nw6\n/undo\nw7\n/undo\n/undo\n/undo\n")
    turns = [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": "answer number 1"},
        {"role": "user", "content": "w7"},
    ]
    assert parrot.prompts[2] == encode_prompt(tokenizer, turns, LLAMA2)
    assert "taken back: w6" in shown and "nothing to take back" in shown


def test_what_is_saved_is_a_row_that_prepare_data_reads(parrot, tmp_path):
    file = tmp_path / "talk.jsonl"
    typed = f"/save {file}\n/system 你好\nw5\nw6\n/save {file}\n/save {tmp_path}\nw7\n"
    _, shown = talk(parrot, typed)
    (row,) = read_rows(file)
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert row["messages"][0]["content"] == "你好"
    assert "once something was said" in shown
    assert "Is a directory" in shown and "answer number 3" in shown  # the talk went on


def test_another_model_goes_on_with_the_conversation(parrot, tokenizer):
    other = Parrot(tokenizer)
    _, shown = talk(parrot, "w5\n/model\n/model other9\n/model other0\nw6\n", [other])
    assert "there are other0, it; you are talking to it" in shown
    assert "/model other9: no such model here" in shown
    assert parrot.closed  # one model in memory
    turns = [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": "answer number 1"},
        {"role": "user", "content": "w6"},
    ]
    assert other.prompts == [encode_prompt(tokenizer, turns, LLAMA2)]


def test_two_models_answer_side_by_side_and_remember_their_own_answers(parrot, tokenizer):
    other = Parrot(tokenizer)
    talk_before = "w5\n/both\nw6\nw7\n/model it\nw8\n"
    chat, shown = talk(parrot, talk_before, [other])
    assert "talking to it and other0" in shown
    assert re.search(r"^answer number 2 +│ answer number 1$", shown, re.M)
    assert [len(one.prompts) for one in (parrot, other)] == [4, 2]
    turns = [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": "answer number 1"},
        {"role": "user", "content": "w6"},
        {"role": "assistant", "content": "answer number 1"},
        {"role": "user", "content": "w7"},
    ]
    assert other.prompts[1] == encode_prompt(tokenizer, turns, LLAMA2)
    assert len(chat.histories["it"]) == 8 and other.closed and not parrot.closed


def test_an_interrupt_stops_both_answers(parrot, tokenizer):
    parrot.interrupt_after = 1
    chat, shown = talk(parrot, "/both\nw5\nw6\n", [Parrot(tokenizer)])
    assert shown.count("(stopped)") == 2
    assert len(chat.histories["it"]) == len(chat.histories["other0"]) == 4


def test_a_model_that_does_not_load_leaves_the_talk_as_it_was(parrot):
    def broken() -> None:
        raise InputError("models/x: no weights", "they are not there", "copy them")

    partners = [Partner("x", LLAMA2, broken), Partner("it", LLAMA2, lambda: parrot)]
    output = io.StringIO()
    chat = Chat(partners, output=output, decoding=Decoding(512))
    talk_in(chat, io.StringIO("w5\n/model x\nw6\n"))
    assert "no weights" in output.getvalue() and "answer number 2" in output.getvalue()
    assert chat.speakers == ["it"] and len(chat.histories["it"]) == 4


def test_columns_show_every_line_once_whatever_the_pieces():
    texts = ["一二三四五六七八九十" * 3 + " and some words of English", "short\n\nthen longer " * 4]
    whole = [list(wrap(text, 18)) for text in texts]
    chance = random.Random(4)
    for _ in range(20):
        columns = SideBySide(["a", "b"], 39)
        shown = ""
        places = [0, 0]
        while any(place < len(text) for place, text in zip(places, texts, strict=True)):
            column = chance.randrange(2)
            step = chance.randint(1, 9)
            shown += columns.add(column, texts[column][places[column] : places[column] + step])
            places[column] += step
        shown += columns.end(1) + columns.end(0)
        lines = shown.splitlines()
        assert [line.split("│")[0].strip() for line in lines][: len(whole[0])] == whole[0]
        second = [line.partition("│")[2].strip() for line in lines]
        assert second[: len(whole[1])] == whole[1]
        assert all(cell_len(line) <= 39 for line in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("a bc def", ["a bc", "def"]),
        ("你好世界", ["你好", "世界"]),
        ("abcdefgh", ["abcde", "fgh"]),
        ("a\n\nb", ["a", "", "b"]),
    ],
)
def test_wrap(text, lines):
    assert list(wrap(text, 5)) == lines


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye", "exit", "quit", " QUIT "])
def test_what_people_type_to_leave(parrot, word):
    talk(parrot, f"w5\n{word}\nw6\n")
    assert len(parrot.prompts) == 1


def test_set_changes_how_answers_are_chosen(parrot):
    typed = "/set temperature 0.7\n/set parameter top_k 40\n/set num_predict 7\n/set seed null\n"
    chat, shown = talk(parrot, typed, decoding=Decoding(512, seed=9))
    assert chat.decoding == Decoding(7, temperature=0.7, top_k=40, seed=0)
    assert "temperature 0.7, top_k 40, top_p 1, min_p 0, repeat_penalty 1" in shown
    assert not parrot.prompts


def test_set_refuses_in_words_and_the_talk_goes_on(parrot):
    typed = "/set temperature hot\n/set top_p 2\n/set warmth 1\n/set temperature\n/set\nw5\n"
    chat, shown = talk(parrot, typed)
    assert chat.decoding == Decoding(512) and len(parrot.prompts) == 1
    assert "it must be a number\n" in shown and "it must be a number of at most 1" in shown
    assert shown.count("not a setting of this chat") == 2
    assert "at temperature 0 the likeliest token is taken" in shown


def test_greedy_is_said_at_the_start():
    assert "greedy" in _choosing(Decoding(9)) and "/set temperature" in _choosing(Decoding(9))
    assert "temperature 0.5, top_k 3" in _choosing(Decoding(9, temperature=0.5, top_k=3))


def test_a_message_without_room_is_said_to_be_cut(parrot):
    _, shown = talk(parrot, "w5 w6 w7 w8 " * 20 + "\n", max_length=60, decoding=Decoding(20))
    assert "(the message is too long and loses its beginning: " in shown
    assert "40 have room" in shown and len(parrot.prompts[0]) == 40
    both = "/both\n" + "w5 w6 w7 w8 " * 20 + "\n"
    others = [Parrot(parrot.tokenizer)]
    _, shown = talk(parrot, both, others, max_length=60, decoding=Decoding(20))
    assert "too long for it and" in shown and "too long for other0 and" in shown


def test_the_commands_fit_80_columns():
    assert all(len(f"{one.usage:<16}{one.does}") <= 80 for one in COMMANDS.values())


def test_nothing_breaks_two_columns_of_eighty_cells():
    """Wide labels, tabs and signs that move a cursor; the texts themselves stay as they came."""
    titles = ["模型" * 30, "models/runs/a/very/long/name/of/a/merged_model-Q4_K_M-imatrix"]
    columns = SideBySide(titles, 80)
    texts = ["def f():\n\treturn\t1\r\n" + "宽" * 50, "\x1b[2Jgone\x07 👍🏽 ，。" * 9]
    shown = columns.head
    shown += "".join(columns.add(column, text) for column, text in enumerate(texts))
    shown += columns.end(0) + columns.end(1)
    assert columns.texts == texts
    assert "\t" not in shown and "\x1b" not in shown and "\r" not in shown
    lines = shown.splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    assert {cell_len(line.partition("│")[0]) for line in lines if "│" in line} == {39}
