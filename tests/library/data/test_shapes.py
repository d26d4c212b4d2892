"""Each shape becomes a conversation, or says in words why the row cannot."""

import pytest

from slimtune.data.columns import parse_mapping, renamed
from slimtune.data.shapes import (
    SHAPES,
    alpaca,
    detect,
    messages,
    prompt_completion,
    qa,
    sharegpt,
    unfolded,
)
from slimtune.data.turns import BadRow, require_order, trimmed


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def test_alpaca_joins_instruction_and_input():
    row = {"instruction": " Translate. ", "input": "cat", "output": "猫\n"}
    assert alpaca(row) == turns("Translate.\n\ncat", "猫")


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_alpaca_without_input(empty):
    assert alpaca({"instruction": "Hi", "input": empty, "output": "Ho"}) == turns("Hi", "Ho")
    assert alpaca({"instruction": "Hi", "output": 4}) == turns("Hi", "4")


def test_alpaca_system_and_history_come_first():
    row = {"instruction": "c", "output": "d", "system": "Be brief.", "history": [["a", "b"]]}
    system = {"role": "system", "content": "Be brief."}
    assert alpaca(row) == [system, *turns("a", "b", "c", "d")]


@pytest.mark.parametrize(
    ("question", "answer"),
    [("question", "answer"), ("Questions", " Answers "), ("query", "response"), ("问题", "回答")],
)
def test_qa_spellings(question, answer):
    assert qa(renamed({question: "Why?", answer: "So."}, {})) == turns("Why?", "So.")


def test_messages_and_sharegpt():
    openai = {"messages": [{"role": "system", "content": "S"}, *turns("a", "b")]}
    assert messages(openai) == [{"role": "system", "content": "S"}, *turns("a", "b")]
    said = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert sharegpt({"conversations": said}) == turns("a", "b")


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [
        ("alpaca", {"instruction": "Hi"}, 'no "output"'),
        ("alpaca", {"instruction": "Hi", "output": "  "}, 'empty "output"'),
        ("alpaca", {"instruction": "Hi", "output": ["a"]}, '"output" is not text'),
        ("alpaca", {"instruction": "Hi", "output": "\ud800"}, "half a character"),
        ("alpaca", {"instruction": "H", "output": "o", "history": [["a"]]}, '"history" is no list'),
        ("alpaca", {"instruction": "H", "output": "o", "history": 3}, '"history" is no list'),
        ("qa", {"answer": "So."}, 'no "question"'),
        ("messages", {"messages": "hello"}, 'no "messages" list'),
        ("messages", {"messages": []}, "no turns"),
        ("messages", {"messages": turns("a", "b", "c")}, "last turn is not the assistant's"),
        ("messages", {"messages": turns("a", "b")[1:]}, "turn 1 is 'assistant'"),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "empty user turn"),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "is not text"),
    ],
)
def test_bad_rows_say_why(shape, row, reason):
    with pytest.raises(BadRow, match=reason):
        require_order(SHAPES[shape](row))


def test_detect_by_majority_and_prefers_the_whole_conversation():
    good = {"instruction": "Hi", "output": "Ho"}
    assert detect([{"instruction": "no output"}, good, good]) == "alpaca"
    assert detect([{"question": "a", "answer": "b"}]) == "qa"
    assert detect([good | {"messages": turns("a", "b", "c", "d")}]) == "messages"
    assert detect([{"text": "plain"}]) is None
    assert detect([]) is None


def test_prompt_and_completion_as_texts_or_turns():
    assert prompt_completion({"prompt": "a", "completion": "b"}) == turns("a", "b")
    said = turns("a", "b", "c", "d")
    assert prompt_completion({"prompt": said[:3], "completion": said[3:]}) == said


def test_two_lists_are_the_sides_of_one_conversation():
    row = {"input": ["a", "c"], "output": ["b", "d"]}
    assert alpaca(row) == turns("a", "b", "c", "d")
    assert alpaca(row | {"instruction": "I"})[0]["content"] == "I\n\na"
    with pytest.raises(BadRow, match='2 texts in "input", 1 in "output"'):
        alpaca({"input": ["a", "c"], "output": ["b"]})


def test_several_accepted_answers_train_the_first_and_keep_all():
    found = list(unfolded({"question": "a", "answer": ["b", "c"]}))
    assert found == [({"question": "a", "answer": "b"}, ["b", "c"])]
    assert list(unfolded({"question": "a", "answer": ["b"]})) == [
        ({"question": "a", "answer": "b"}, [])
    ]


def test_nested_instances_are_rows_of_their_own():
    nested = [{"input": "x", "output": "1"}, {"input": "y", "output": "2"}]
    nested += [{"input": "x", "output": "3"}]
    found = list(unfolded({"instruction": "i", "instances": nested}))
    assert [(alpaca(row), more) for row, more in found] == [
        (turns("i\n\nx", "1"), ["1", "3"]),
        (turns("i\n\ny", "2"), []),
    ]


def test_headers_are_forgiven_and_mapped():
    mapping = parse_mapping("question= Frage,ANSWER=My Answer")
    row = {"  frage ": "a", "my  answer": "b", "Answer": "no", "Other": 1}
    assert renamed(row, mapping) == {"question": "a", "answer": "b", "Answer": "no", "Other": 1}
    assert renamed({"Output": 1, "output": 2}, {}) == {"Output": 1, "output": 2}


def test_trimmed_keeps_the_system_message_and_whole_exchanges():
    system = [{"role": "system", "content": "S"}]
    said = turns("a", "b", "c", "d", "e")
    assert trimmed(system + said) == system + said[:4]
    assert trimmed(system + said[1:]) == system + said[2:4]
    assert trimmed(said[1:2]) == []
