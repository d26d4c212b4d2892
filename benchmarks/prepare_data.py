"""Preparing a large JSON array: rows a second and peak memory, beside `datasets` doing the same.

    python benchmarks/prepare_data.py                   # 2 GB, takes minutes and 7 GB of disk
    python benchmarks/prepare_data.py --small           # 40 MB
    python benchmarks/prepare_data.py --megabytes 500 --language zh

Both sides parse the array, convert and clean each row, drop repeated rows by the same keys, split
by the same hash and write JSON Lines. The row functions are the very same ones, so what differs is
how rows travel: `prepare_data.py` streams them, `datasets.load_dataset("json")` + `map` + `filter`
takes them through Arrow. Only ours also keeps rejected rows and looks for leaks.

Bars: peak memory of ours below 500 MB at 2 GB; ours not slower than the peer.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import FINETUNE, ROOT, Cost, machine, measure, report, table

BAR_MEGABYTES = 500
_WORDS = {
    "en": ["the ", "of ", "a ", "model ", "rain ", "river ", "why ", "answer ", "large "],
    "zh": list("的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动"),
}
_SENTENCE = 12  # words between two full stops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--small", action="store_true", help="40 MB")
    parser.add_argument("--language", choices=list(_WORDS), default="en")
    parser.add_argument("--side", choices=["datasets"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_datasets(options.file)
        return
    megabytes = 40 if options.small else options.megabytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < megabytes * 5e6:
            sys.exit(f"{folder}: {free / 1e9:.0f} GB free, {megabytes * 5 / 1e3:.0f} GB needed")
        file = folder / "rows.json"
        rows = generate(file, megabytes * 1_000_000, options.language)
        show(file, rows, compare(file, folder))


def generate(file: Path, size: int, language: str) -> int:
    """An array of Alpaca rows, one in fifty a repeat of an earlier one; how many were written."""
    chance = random.Random(7)
    texts = [_text(chance, language) for _ in range(5000)]
    rows = written = 0
    with file.open("w", encoding="utf-8") as stream:
        stream.write("[")
        while written < size:
            number = rows if rows % 50 else chance.randrange(rows + 1)
            own = random.Random(number)
            row = {
                "instruction": f"Task {number}: {own.choice(texts)[: own.randrange(40, 160)]}",
                "input": "",
                "output": f"{own.choice(texts)} {own.choice(texts)}",
            }
            text = json.dumps(row, ensure_ascii=False, indent=2)
            stream.write(f"{',' if rows else ''}\n{text}")
            rows += 1
            written += len(text.encode()) + 2
        stream.write("\n]\n")
    return rows


def _text(chance: random.Random, language: str) -> str:
    stop = ". " if language == "en" else "。"
    sentences = [
        "".join(chance.choices(_WORDS[language], k=_SENTENCE))
        for _ in range(chance.randrange(2, 8))
    ]
    return stop.join(sentences) + stop.strip()


def compare(file: Path, folder: Path) -> Iterator[tuple[str, Cost]]:
    """Every side as a process of its own, one after the other."""
    for workers in (1, 2):
        out = folder / f"out{workers}"
        words = ["--input", file, "--output-dir", out, "--workers", str(workers)]
        words += ["--base-model", folder / "none", "--config", ROOT / "config.yaml"]
        command = [sys.executable, FINETUNE / "prepare_data.py", *words]
        yield f"prepare_data.py, {workers} worker{'s' * (workers > 1)}", measure(command)
        shutil.rmtree(out)
    command = [sys.executable, __file__, "--side", "datasets", "--file", file]
    yield "datasets: load_dataset, map, filter", measure(command, check=False)


def show(file: Path, rows: int, sides: Iterator[tuple[str, Cost]]) -> None:
    print(machine())
    cells = []
    for name, cost in sides:
        speed = "failed" if cost.returncode else rows / cost.wall
        cells.append([name, speed, cost.wall, cost.cpu, cost.megabytes])
        if cost.returncode:
            print(f"{name} exited with {cost.returncode}: {cost.output.strip()[-300:]}")
        else:
            print(f"{name}: done in {cost.wall:.0f} s", flush=True)
    table(
        f"{rows:,} rows, a JSON array of {file.stat().st_size / 1e6:,.0f} MB "
        f"(bar: ours below {BAR_MEGABYTES} MB and not slower)",
        ["", "rows/s", "wall s", "CPU s", "peak MB"],
        cells,
    )


def run_datasets(file: Path) -> None:
    """The peer: the same functions of rows, carried by `datasets`."""
    from datasets import Features, Value, disable_progress_bars, load_dataset

    from slimtune.config.data import Data
    from slimtune.data.splits import assign, split_bounds

    disable_progress_bars()
    settings = Data()
    cache = str(file.parent / "cache")
    raw = load_dataset("json", data_files=str(file), cache_dir=cache, split="train")
    turns = [{"role": Value("string"), "content": Value("string")}]
    wanted = {"id": Value("string"), "messages": turns, "near": Value("int64")}
    wanted |= {"position": Value("float64"), "language": Value("string")}
    wanted |= {name: Value("string") for name in ("instruction", "input", "output")}
    rows = raw.map(convert, features=Features(wanted), fn_kwargs={"settings": settings})
    seen: set[int] = set()
    rows = rows.filter(lambda key: not (key in seen or seen.add(key)), input_columns="near")
    places = assign(rows.with_format("numpy")["position"][:], split_bounds(settings))
    for place, split in enumerate(("train", "validation", "test")):
        chosen = rows.select((places == place).nonzero()[0]).remove_columns(["near", "position"])
        chosen.to_json(file.parent / f"peer_{split}.jsonl", force_ascii=False)
    report(rows=len(rows))


def convert(row: dict, settings) -> dict:
    """What `slimtune.data.conversion` does to a usable row."""
    from slimtune.data.cleaning import cleaned
    from slimtune.data.shapes import alpaca
    from slimtune.data.similarity import keys_of, language
    from slimtune.data.splits import position

    messages = cleaned(alpaca(row), settings, [])
    keys = keys_of(messages)
    return {
        "id": keys.id,
        "messages": messages,
        "near": keys.near >> 1,  # Arrow takes it as a signed number
        "position": position(keys.asked, settings.seed),
        "language": language("\n".join(message["content"] for message in messages)),
    }


if __name__ == "__main__":
    main()
