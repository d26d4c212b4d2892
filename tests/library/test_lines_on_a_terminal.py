"""Words to the user on a terminal of 80 columns: lines break between words, commands never."""

from pathlib import Path

import pytest
from rich.cells import cell_len
from terminals import said

from slimtune.console import fitted
from slimtune.wrapping import wrap

SAYS = """
import logging, sys
from pathlib import Path
from slimtune.console import note, start_logging, tell_error, would_write, wrote
from slimtune.errors import InputError

command, batch, chinese, unused, memory = sys.argv[1:]
start_logging()
note(batch)
logging.getLogger("slimtune").info(chinese)
logging.getLogger("matplotlib.font_manager").warning("Matplotlib is building the font cache")
wrote(Path("models/a"), numbers={"columns not used": unused}, next=command)
would_write(Path("models/a"), estimates={"memory": memory})
why = "a row teaches an answer, and this one of many others has none to teach"
tell_error(InputError("data/a.json:12: no output", why, command))
note(f"read models/{'m' * 90} and what lies there")
"""
COMMAND = "train_lora.py --train-data data/finetune/train_train.jsonl --resume --overwrite"
TOLD = (
    f"python finetune/{COMMAND}",
    "batch size auto: 16 rows a step x 1 accumulated = 16 rows; about 0.56 GB of 17.78 GB",
    "step 3: " + "每一行都在词与词之间断开，不会切断数字或单词" * 3 + " 17.78 GB",
    "family (100% filled, 7 characters), language (100% filled, 2 characters)",
    "14.1 GB free, 17.8 GB in all, of which 3.1 GB are needed for the weights alone",
)


def test_lines_break_between_words_and_commands_do_not() -> None:
    lines = said(SAYS, *TOLD, columns=80)
    assert len([line for line in lines if line.endswith(COMMAND)]) == 2  # next: and do:
    assert f"  models/{'m' * 90} and what lies there".split()[0] in " ".join(lines).split()
    others = [line for line in lines if not line.endswith(COMMAND) and "m" * 90 not in line]
    assert max(map(cell_len, others)) <= 80
    assert lines[:2] == [TOLD[1].removesuffix(" 17.78 GB"), "  17.78 GB"]
    assert "font cache" not in "".join(lines)  # an empty HOME has none
    words = " ".join(lines).split()
    assert all(word in words for text in TOLD for word in text.split() if word.isascii())
    told = next(number for number, line in enumerate(lines) if "columns not used" in line)
    assert lines[told + 1].startswith(" " * 9) and lines[told + 1][9] != " "


def test_in_a_pipe_a_line_stays_a_line(tmp_path) -> None:
    text = "word " * 60
    with (tmp_path / "log").open("w") as file:
        assert fitted(text, file) == text
    assert said("print('a')", columns=None) == ["a"]
    assert Path(tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("width", range(8, 22))
@pytest.mark.parametrize(
    "text",
    [
        "模型说“你好”，然后停下；再说（一次）。就这样！",
        "aaaaaaaaaaaaaaaaaaaaa，bbbbbbbbbbbbbbbbbbbb。ccccccc：ddddddd",
        "中文,有时.用半角!标点:像这样)也行%好?是的;对",
    ],
)
def test_no_line_begins_with_what_closes_or_ends_with_what_opens(text: str, width: int) -> None:
    lines = list(wrap(text, width))
    assert "".join(lines) == text and max(map(cell_len, lines)) <= width
    assert not [line for line in lines if line[0] in "，。、；：？！）”’,.!:)%?;"]
    assert not [line for line in lines if line[-1] in "（“‘"]
