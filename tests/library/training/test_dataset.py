"""Before the first step: two rows are shown, and what ruins a model in silence is refused."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from tiny_folders import write_tiny_llama

from slimtune.config import Training
from slimtune.errors import InputError, SettingsError
from slimtune.models import tokenizers
from slimtune.training.dataset import Dataset, read_dataset

ROWS = [("What is red?", "A rose."), ("And blue?", "The sky."), ("ODD one?", "The grass.")]
# {start} and {end} are what stands around a question and after an answer; only the third row is
# another one than the rest.
TEMPLATE = (
    "{{%- set odd = 'ODD' in messages[0]['content'] -%}}"
    "{{%- for message in messages -%}}{{%- if message['role'] == 'user' -%}}"
    "{{{{- {start} + '[INST] ' + message['content'] + ' [/INST]' -}}}}"
    "{{%- else -%}}{{{{- ' ' + message['content'] + ' ' + {end} -}}}}{{%- endif -%}}"
    "{{%- endfor -%}}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base"), hidden=64)


def dataset(
    base: Path, folder: Path, *, rows=ROWS, template: str = "llama2", **settings
) -> Dataset:
    file = folder / "rows.jsonl"
    written = [{"instruction": question, "input": "", "output": said} for question, said in rows]
    file.write_text("\n".join(map(json.dumps, written)), encoding="utf-8")
    return read_dataset(str(base), template, Training(train_data=file, **settings))


def with_template(base: Path, folder: Path, start: str = "bos_token", end: str = "eos_token"):
    """The base with a chat template of its own."""
    other = shutil.copytree(base, folder / "base")
    text = TEMPLATE.format(start=start, end=end)
    (other / "chat_template.jinja").write_text(text, encoding="utf-8")
    return other


def test_two_rows_are_shown_with_what_is_learned(base, tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO, "slimtune"):
        dataset(base, tmp_path)
    shown = [record.getMessage() for record in caplog.records if "«" in record.getMessage()]
    introduced = "the first training rows as the model reads them; it learns to write «this»:"
    assert shown.pop(0) == introduced and len(shown) == 2
    assert shown[0].replace(" ", "").endswith("<s>[INST]Whatisred?[/INST]«Arose.</s>»")


def test_chinese_is_shown_as_text(base, tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO, "slimtune"):
        dataset(base, tmp_path, rows=[("玫瑰是什么颜色?", "红色。")])
    assert "玫瑰是什么颜色" in caplog.text and "红色。" in caplog.text


def test_a_template_of_the_models_own_is_fine_where_it_ends_answers(base, tmp_path) -> None:
    own = dataset(with_template(base, tmp_path), tmp_path, template="tokenizer")
    assert own.train == dataset(base, tmp_path).train


@pytest.mark.parametrize(
    ("template", "words"),
    [
        # <s> is a special token, too, so that the answer has an end: but not the one that stops.
        ({"end": "(bos_token if odd else eos_token)"}, "</s> is not what the answer ends with"),
        ({"start": "(bos_token * (2 if odd else 1))"}, "two <s> stand one after the other"),
    ],
)
def test_one_odd_row_among_many_is_found(base, tmp_path, template, words) -> None:
    odd = with_template(base, tmp_path, **template)
    dataset(odd, tmp_path, rows=ROWS[:2], template="tokenizer")
    with pytest.raises(InputError) as error:
        dataset(odd, tmp_path, template="tokenizer")
    assert error.value.what == f"row 3 of rows.jsonl: {words}"


def test_a_row_without_an_answer_is_named(base, tmp_path) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl:3"):
        dataset(base, tmp_path, rows=[*ROWS[:2], ("Nothing?", "")])


def test_padding_with_the_end_token_is_refused(base, tmp_path, monkeypatch) -> None:
    """`tokenizers.load` mends it; should it ever come through, nothing is trained."""
    tokenizer = tokenizers.load_tokenizer(str(base))
    tokenizer.pad_token = tokenizer.eos_token
    monkeypatch.setattr(tokenizers, "load_tokenizer", lambda model: tokenizer)
    with pytest.raises(InputError, match="padding token is its end token"):
        dataset(base, tmp_path)


def test_a_token_without_a_row_in_the_embedding_is_refused(base, tmp_path, monkeypatch) -> None:
    tokenizer = tokenizers.load_tokenizer(str(base))
    tokenizer.add_tokens(["<new>"])
    monkeypatch.setattr(tokenizers, "load_tokenizer", lambda model: tokenizer)
    with pytest.raises(InputError, match="401 ids, 400 rows"):
        dataset(base, tmp_path)


def test_more_cut_rows_than_allowed(base, tmp_path) -> None:
    long = [("What about " + "roses and " * 20 + "sky?", "A rose.")]
    with pytest.raises(SettingsError, match="1 of 4 rows are longer than 40 tokens"):
        dataset(base, tmp_path, rows=[*ROWS, *long], max_length=40)
    kept = dataset(base, tmp_path, rows=[*ROWS, *long], max_length=40, max_truncated_share=0.3)
    assert max(len(sample.input_ids) for sample in kept.train) <= 40
