"""An answer that grows on a terminal breaks its lines where a text does."""

import random

import pytest

from slimtune.chat.growing import Growing
from slimtune.wrapping import wrap

TEXTS = (
    "Plan a quiet trip: take the early train, walk along the river, and be back before it rains.",
    "银行会在收到您的申请后尽快处理，一般需要三个工作日（节假日顺延）。请您耐心等待，谢谢！",
    "One line.\n\n  - a list, a\ttab and  blanks \n- https://example.org/a/path/that/is/copied x",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("width", [20, 33, 80])
def test_in_pieces_of_any_size_it_is_the_wrapped_text(text: str, width: int) -> None:
    chance = random.Random(width)
    for _ in range(20):
        growing, rest, shown = Growing(width), text, ""
        while rest:
            size = chance.randint(1, 9)
            shown += growing.add(rest[:size])
            rest = rest[size:]
        shown += growing.end()
        assert shown == "\n".join(wrap(text.rstrip(), width, whole_words=True))
        assert growing.text == text


def test_a_word_is_shown_when_the_next_begins() -> None:
    growing = Growing(12)
    given = [growing.add(piece) for piece in ("Good", " mor", "ning ", "all", " of", " you")]
    assert given == ["", "Good", " morning", "", "\nall", " of"]
    assert growing.end() == " you"


def test_where_there_is_no_terminal_it_comes_as_it_is() -> None:
    growing = Growing(None)
    assert [growing.add(piece) for piece in ("a  ", "b\t")] == ["a  ", "b\t"] and not growing.end()
