"""Small files in the shape of what people have reported, each of one kind of fault."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

Row = dict[str, Any]
ASKED = [f"Which colour has flag {n}?" for n in range(6)]
TOLD = ["red", "blue", "green", "white", "black", "yellow"]


def write_all(folder: Path) -> None:
    """Every situation as a file of its name; the one that is a folder as a folder."""
    for name, content in SITUATIONS.items():
        if isinstance(content, str):
            content = content.encode("utf-8")
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).mkdir()
            content(folder / name)


def lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(head: str, rows: Iterable[str], end: str = "\n") -> str:
    return end.join([head, *rows, ""])


def chat(*turns: tuple[str, object]) -> list[Row]:
    return [{"role": role, "content": content} for role, content in turns]


def alpaca(n: int, given: object = "") -> Row:
    return {"instruction": ASKED[n], "input": given, "output": TOLD[n]}


def part(text: str) -> list[Row]:
    return [{"type": "text", "text": text}]


PAIRS = list(zip(ASKED, TOLD, strict=True))
PLAIN = [f"{question},{answer}" for question, answer in PAIRS]
CHATS = [chat(("user", question), ("assistant", answer)) for question, answer in PAIRS]
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
SPEAKERS = [
    ("human", "gpt"), ("Human", "Assistant"), ("USER", "ASSISTANT"), ("用户", "助手"),
    ("用户", "机器人"), ("问", "答"), ("User:", "Bot:"), ("usr", "bot"), ("instruction", "output"),
    ("speaker1", "speaker2"), ("Q", "A"), ("human", "observation"), ("human", "function_call"),
    ("观察", "助手"), ("学生", "老师"),
]  # fmt: skip


def weighed(n: int) -> Row:
    """A bad answer that is to be read and not learned."""
    said = chat(("user", ASKED[n]), ("assistant", "grey"), ("user", "Sure?"), ("assistant", "no"))
    said[1]["weight"], said[3]["weight"] = 0, 1
    return {"messages": said}


def spoken(user: str, other: str) -> Row:
    return {
        "conversations": [
            {"from": user, "value": f"{user} asks"},
            {"from": other, "value": f"{other} answers"},
        ]
    }


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def cloned(folder: Path) -> None:
    """A data folder as `git clone` leaves it."""
    (folder / "README.md").write_text("---\nlicense: mit\n---\nFlags.\n", encoding="utf-8")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n", encoding="utf-8")
    (folder / "dataset_infos.json").write_text('{"default": {"features": {}}}', encoding="utf-8")
    (folder / "data").mkdir()
    rows = pyarrow.table({"question": ASKED, "answer": TOLD})
    parquet.write_table(rows, folder / "data" / "train-00000-of-00001.parquet")


SITUATIONS: dict[str, str | bytes | Callable[[Path], None]] = {
    "nan_input.json": json.dumps([alpaca(n, float("nan") if n % 2 else "Hint") for n in range(6)]),
    "context_qa.jsonl": lines(
        {"context": f"Flag {n} is {answer}.", "question": question, "answer": answer}
        for n, (question, answer) in enumerate(PAIRS)
    ),
    "weight.jsonl": lines(weighed(n) for n in range(4)),
    "sjis.csv": table(
        "question,answer", [f"旗{n}の色は何ですか,それは赤です{n}" for n in range(20)]
    ).encode("shift_jis"),
    "nulbytes.csv": "question,answer\nfirst?,good\nsec\0ond?,bad\0 one\nthird?,ok\n",
    "cat_bom.csv": "".join(
        "\ufeff" + table("question,answer", rows, "\r\n")
        for rows in (PLAIN[:4], [f"Is flag {n} old?,yes" for n in range(4)])
    ),
    "dict_of_lists.json": json.dumps({"instruction": ASKED, "output": TOLD}),
    "parts.jsonl": lines(
        {"messages": chat(("system", "Be short."), ("user", part(q)), ("assistant", part(a)))}
        for q, a in PAIRS
    ),
    "developer.jsonl": lines(
        {"messages": chat(("developer", "Be brief."), ("user", q), ("assistant", a))}
        for q, a in PAIRS
    ),
    "json_in_csv.csv": table(
        "id,messages", [f"{n},{quoted(json.dumps(said))}" for n, said in enumerate(CHATS)], "\r\n"
    ),
    "bools.jsonl": lines(
        {"question": question, "answer": n % 2 == 0} for n, question in enumerate(ASKED)
    ),
    "cn_cols.csv": table("指令,输入,输出", [f"翻译{n},旗子{n},flag {n}" for n in range(4)]),
    "dolly.jsonl": lines(
        {"instruction": q, "context": "A book of flags.", "response": a, "category": "closed_qa"}
        for q, a in PAIRS
    ),
    "sep_line.csv": table(
        "sep=;", ["question;answer", *(f"{q};It is {a}, yes" for q, a in PAIRS)], "\r\n"
    ),
    "title_row.csv": table(
        "Flags of 2026,,", [",,", "question,answer,note", *(f"{row},n" for row in PLAIN)]
    ),
    "blank_rows.csv": table("question,answer,note", [*(f"{row},n" for row in PLAIN), *[",,"] * 30]),
    "hf_clone": cloned,
    "glued.jsonl": "".join(json.dumps(alpaca(n)) for n in range(6)),
    "one_row.jsonl": lines([{"messages": CHATS[0], "source": {"file": "raw.json", "line": 1}}]),
    "swallow.csv": table(
        "question,answer", [*PLAIN[:3], 'A?,"red', *PLAIN[3:5], 'B?,blue"', "C?,x", "D?,y", "E?,z"]
    ),
    "roles.jsonl": lines(spoken(*pair) for pair in SPEAKERS),
    "dup_header.csv": table("question,answer,answer", [f"{row},wrong" for row in PLAIN]),
    "lfs.jsonl": "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4096\n",
    "tools.jsonl": lines(
        {"messages": [said[0], CALLED, {"role": "tool", "content": "red"}, said[1]]}
        for said in CHATS[:4]
    )
    + lines({"messages": said} for said in CHATS[4:]),
    "cat_arrays.json": "".join(
        json.dumps([alpaca(n) for n in some]) + "\n" for some in (range(3), range(3, 6))
    ),
}  # fmt: skip
