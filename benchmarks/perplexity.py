"""A model in transformers and its GGUF files in llama.cpp: the same perplexity of plain text?

    python benchmarks/perplexity.py models/unpacked/NAME ../shared/data/text/tinyshakespeare.txt
    python benchmarks/perplexity.py FOLDER FILE --types F16,Q8_0,Q4_K_M --chunks 40

The protocol is llama-perplexity's: the text is cut into chunks of 512 tokens, the first of which is
BOS where the vocabulary puts it in front, and the second half of each chunk is counted. Beside the
text stands a numbered list with blank lines between its items, on which a pre-tokenizer that was
read in part shows at once. Token ids are compared first: the file's own vocabulary against the
folder's tokenizer.

Bar: F16 within 0.1 % of transformers on both texts.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import FINETUNE, machine, table

sys.path.insert(0, str(FINETUNE))

from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.token_losses import token_losses
from slimtune.models import loading, tokenizers
from slimtune.models.compute import Compute
from slimtune.prompts import IGNORED

BAR = 0.001
CHUNK = 512  # tokens, llama-perplexity's default
NUMBERED = "\n\n".join(f"{i}. Item {i * 37} costs {i * 1.5:.2f} euros" for i in range(1, 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of safetensors")
    parser.add_argument("text", type=Path, help="plain text, UTF-8")
    parser.add_argument("--types", default="F16,Q8_0,Q4_K_M")
    parser.add_argument("--chunks", type=int, default=20, help="of each text at most")
    options = parser.parse_args()
    print(machine())
    names = options.types.split(",")
    with tempfile.TemporaryDirectory() as folder:
        files = convert(options.model, names, Path(folder))
        texts = {options.text.name: options.text.read_text(encoding="utf-8"), "list": NUMBERED}
        rows = [
            row
            for title, text in texts.items()
            for row in compare(title, text, options.model, files, options.chunks)
        ]
    heads = ["text", "chunks", "model", "perplexity", "against transformers", "bar of 0.1 %"]
    table("perplexity of the second half of each chunk", heads, rows)
    sys.exit(any(row[-1] == "missed" for row in rows))


def convert(model: Path, names: list[str], folder: Path) -> dict[str, Path]:
    """The files by convert_to_gguf.py, without its own proof."""
    command = [sys.executable, FINETUNE / "convert_to_gguf.py", "--model-path", model.resolve()]
    command += ["--quantization", ",".join(names), "--verify", "off"]
    command += ["--output-dir", folder, "--model-name", "compared"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return {name: folder / f"compared-{name}.gguf" for name in names}


def compare(
    title: str, text: str, model: Path, files: dict[str, Path], most: int
) -> list[list[str]]:
    """A row for transformers and one for each file. AssertionError for other token ids."""
    tokenizer = tokenizers.load_tokenizer(model)
    ids = tokenizer(text).input_ids
    with LlamaCpp(next(iter(files.values())), slots=0) as vocabulary:
        assert vocabulary.tokenize(text, parse_special=False) == ids, "token ids differ"
        front = vocabulary.tokenize("")  # BOS or nothing
    chunks = [ids[start : start + CHUNK] for start in range(0, len(ids) - CHUNK + 1, CHUNK)][:most]
    chunks = [[*front, *chunk[len(front) :]] for chunk in chunks]
    own = of_transformers(model, chunks)
    rows = [[title, str(len(chunks)), "transformers, float32", f"{own:.4f}", "", ""]]
    for name, file in files.items():
        found = of_llama_cpp(file, chunks)
        off = found / own - 1
        bar = ("met" if abs(off) <= BAR else "missed") if name == "F16" else ""
        rows.append([title, str(len(chunks)), name, f"{found:.4f}", f"{off:+.3%}", bar])
    return rows


def of_transformers(model: Path, chunks: list[list[int]]) -> float:
    loaded = loading.load_model(model, Compute.choose("cpu", "float32"))
    hidden = [IGNORED] * (CHUNK // 2 + 1)
    examples = [{"input_ids": one, "labels": hidden + one[len(hidden) :]} for one in chunks]
    totals = [losses.total for _, losses in token_losses(loaded, examples)]
    return math.exp(sum(t.nats for t in totals) / sum(t.tokens for t in totals))


def of_llama_cpp(file: Path, chunks: list[list[int]]) -> float:
    seen = CHUNK // 2 + 1
    with LlamaCpp(file, context=CHUNK + 1) as model:
        found = [losses.total for _, losses in model.losses([(c[:seen], c[seen:]) for c in chunks])]
    return math.exp(sum(t.nats for t in found) / sum(t.tokens for t in found))


if __name__ == "__main__":
    main()
