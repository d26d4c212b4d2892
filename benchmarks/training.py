"""LoRA training side by side with its peers: CPU seconds, tokens a second, memory, losses.

    python benchmarks/training.py                     # both sizes, ours and the padded Trainer
    python benchmarks/training.py --small             # the small size only
    python benchmarks/training.py --model FOLDER      # a model of yours, such as SmolLM2-135M
    python benchmarks/training.py --model FOLDER --task ../shared/data/banking77/train.csv \\
        --columns question=text,answer=category       # rows that begin alike, in batches of 16
    python benchmarks/training.py --trl-python TRL/bin/python --llamafactory-python LF/bin/python

The same rows, the same model (random but for --model), batches of 4 rows, r = 8 on all linear
layers, float32 but for the side that says bfloat16, one thread; every side is a process of its own.
A token is a token of a real row, so what a side pays for padding counts against it. "training" is
the CPU time of `train()` alone: it is what the bars are about; "process" has the imports, the
loading and the saving in it.

A peer lives in an environment of its own whose python is named by the flag, or by TRL_PYTHON and
LLAMAFACTORY_PYTHON; it needs the peer's package and its versions of transformers and peft.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import FINETUNE, ROOT, SHARED_DATA, Cost, machine, measure, table
from real_model import INSTRUCTION

sys.path.insert(0, str(FINETUNE))
SIDES = Path(__file__).with_name("training_sides.py")
ROWS = 48
LONGEST = 512


@dataclass(frozen=True)
class Size:
    """The shape of a random Llama with Llama-2's vocabulary."""

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int


SIZES = (Size("hidden 256 x 4 layers", 256, 688, 4, 4), Size("82 M", 640, 1792, 8, 10))
# At the small size other sides must cost so many times ours (tokens per CPU second), and ours at
# most this share of their peak memory.
BARS = {"padded": (2.4, 0.5), "llamafactory": (1.6, 0.75), "trl": (3.5, None)}
TITLES = {
    "ours": "SlimTune",
    "ours_bfloat16": "SlimTune, bfloat16 products",
    "padded": "HF Trainer, padded",
    "llamafactory": "LLaMA-Factory, neat_packing",
    "trl": "TRL, padding_free",
    "trl_plain": "TRL, no checkpointing",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the small size only")
    parser.add_argument("--model", type=Path, help="this model's folder in place of random ones")
    parser.add_argument("--task", type=Path, help="a file to prepare; needs --model")
    parser.add_argument("--columns", help="of the task, as in prepare_data.py")
    parser.add_argument("--system-prompt", default=INSTRUCTION)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", default=",".join(TITLES))
    for peer in ("trl", "llamafactory"):
        parser.add_argument(f"--{peer}-python", default=os.environ.get(f"{peer.upper()}_PYTHON"))
    options = parser.parse_args()
    pythons = dict.fromkeys(("trl", "trl_plain"), options.trl_python)
    pythons["llamafactory"] = None if options.task else options.llamafactory_python
    print(machine())
    sizes = [options.model] if options.model else SIZES[:1] if options.small else SIZES
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            if options.task:
                tokens = prepare_task(options, Path(folder))
            else:
                tokens = prepare(size, options.rows, Path(folder))
            costs = {
                side: _run(side, Path(folder), pythons, options.threads)
                for side in options.sides.split(",")
            }
        _show(size, tokens, options.rows, costs)


def _run(side: str, folder: Path, pythons: dict[str, str | None], threads: int) -> Cost | None:
    python = pythons.get(side, sys.executable)
    if python is None or not Path(python).is_file():
        flag = f"--{side.partition('_')[0]}-python"
        print(f"{TITLES[side]}: not installed here, left out (name its python with {flag})")
        return None
    environment = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    return measure([python, SIDES, side, folder], threads=threads, environment=environment)


def _show(size: Size | Path, tokens: int, rows: int, costs: dict[str, Cost | None]) -> None:
    ours = costs.get("ours")
    bars = BARS if size == SIZES[0] else {}
    lines = [
        _line(side, tokens, cost, ours, bars) for side, cost in costs.items() if cost is not None
    ]
    headers = ["", "training CPU s", "tokens/CPU s", "ours", "bar", "process CPU s"]
    headers += ["peak MB", "ours", "bar", "steps", "first loss", "mean loss"]
    table(f"LoRA, {size.name}: {rows} rows, {tokens:,} tokens", headers, lines)


def _line(
    side: str, tokens: int, cost: Cost, ours: Cost | None, bars: dict[str, tuple]
) -> list[Any]:
    found, (speed, memory) = cost.results, bars.get(side, (None, None))
    faster = found["cpu"] / ours.results["cpu"] if ours else 0.0
    smaller = ours.peak / cost.peak if ours else 0.0
    return [
        TITLES[side],
        found["cpu"],
        tokens / found["cpu"],
        f"{faster:.2f}x",
        f">= {speed}x" if speed else "",
        cost.cpu,
        cost.megabytes,
        f"{smaller:.2f}x",
        f"<= {memory}x" if memory else "",
        found["steps"],
        f"{found['losses'][0]:.6f}",
        f"{sum(found['losses']) / len(found['losses']):.6f}",
    ]


def prepare(size: Size | Path, count: int, folder: Path) -> int:
    """Writes model/, or leads it to the folder that `size` is, and the same rows three times:
    rows.json (token ids), alpaca.json (text), prepared.jsonl (as prepare_data does). Returns their
    tokens."""
    from slimtune import prompts
    from slimtune.models import tokenizers

    source = size if isinstance(size, Path) else SHARED_DATA / "llama2-tokenizer"
    tokenizer = tokenizers.load_tokenizer(
        source if source.is_dir() else ROOT / "models/sample/base"
    )
    tokenizer.chat_template = prompts.template("llama2")
    rows, texts = [], []
    for text in _texts():
        messages = [
            {"role": "user", "content": text["instruction"]},
            {"role": "assistant", "content": text["output"]},
        ]
        encoded = prompts.encode(tokenizer, messages, tokenizer.chat_template)
        if encoded and len(encoded["input_ids"]) <= LONGEST and len(rows) < count:
            rows.append({name: encoded[name] for name in ("input_ids", "labels")})
            texts.append(text)
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "alpaca.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    (folder / "prepared.jsonl").write_text("".join(map(_canonical, texts)), encoding="utf-8")
    (folder / "dataset_info.json").write_text('{"rows": {"file_name": "alpaca.json"}}', "utf-8")
    if isinstance(size, Path):
        (folder / "model").symlink_to(size.resolve())
    else:
        _write_model(size, tokenizer, folder / "model")
    return sum(len(row["input_ids"]) for row in rows)


def prepare_task(options: argparse.Namespace, folder: Path) -> int:
    """Rows of a task, prepared as prepare_data.py does and in the model's own prompt template:
    rows.json. Returns their tokens."""
    from slimtune import prompts
    from slimtune.data.rows import read_rows
    from slimtune.models import tokenizers

    command = [sys.executable, FINETUNE / "prepare_data.py", "--input", options.task]
    command += ["--output-dir", folder / "task", "--system-prompt", options.system_prompt]
    measure(command + (["--columns", options.columns] if options.columns else []))
    tokenizer = tokenizers.load_tokenizer(options.model)
    template = prompts.template_of("auto", tokenizer)
    rows = [row["messages"] for row in read_rows(folder / "task" / "train_train.jsonl")]
    drawn = [rows[number * len(rows) // options.rows] for number in range(options.rows)]
    encoded = [prompts.encode(tokenizer, row, template) for row in drawn]
    kept = [{name: row[name] for name in ("input_ids", "labels")} for row in encoded]
    (folder / "rows.json").write_text(json.dumps(kept), encoding="utf-8")
    (folder / "batch.json").write_text("16", encoding="utf-8")
    (folder / "model").symlink_to(options.model.resolve())
    return sum(len(row["input_ids"]) for row in kept)


def _canonical(text: dict[str, str]) -> str:
    """A row as prepare_data writes it."""
    messages = [
        {"role": "user", "content": text["instruction"]},
        {"role": "assistant", "content": text["output"]},
    ]
    row = {"messages": messages, "source": {"file": "alpaca.json", "line": 1}}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _texts() -> list[dict[str, str]]:
    """Alpaca rows, English and Chinese by turns; without the shared data the sample's own rows."""
    files = [SHARED_DATA / f"instruct/alpaca_{language}_demo.json" for language in ("en", "zh")]
    if not all(file.is_file() for file in files):
        files = [ROOT / "data/raw_data.json"] * 2
    english, chinese = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    pairs = [row for pair in zip(english, chinese, strict=False) for row in pair]
    return [
        {
            "instruction": "\n".join(filter(None, [row["instruction"], row.get("input", "")])),
            "input": "",
            "output": row["output"],
        }
        for row in pairs
    ]


def _write_model(size: Size, tokenizer: Any, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from slimtune.models import tokenizers

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=size.hidden,
        intermediate_size=size.ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizers.save_tokenizer(tokenizer, folder)


if __name__ == "__main__":
    main()
