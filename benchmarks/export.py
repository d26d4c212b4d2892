"""Merge and conversion beside peft and llama.cpp's own tools: bytes, CPU seconds, memory, disk.

    LLAMA_CPP_DIR=llama.cpp python benchmarks/export.py                # 1.1 B, all parts
    LLAMA_CPP_DIR=llama.cpp python benchmarks/export.py --types Q8_0 --parts convert
    python benchmarks/export.py --shape 7b --parts memory --types Q8_0 # 21 GB of disk
    LLAMA_CPP_DIR=llama.cpp python benchmarks/export.py --small        # a tiny shape, a quick try

The model is random, in bfloat16, written here shard by shard, with the Llama-2 tokenizer. Parts:

convert   each type by convert_to_gguf.py --through-f16 and by convert_hf_to_gguf.py (F16) with
          llama-quantize: the same file? The peer's F16 file is made once and counted for each type.
merge     evaluate_model.py --merge and peft's merge_and_unload: the same tensors?
fly       convert_to_gguf.py --lora-model: the bytes of merging first and converting then?
imatrix   importance measured here and by llama-imatrix on the same chunks, and the file that
          convert_to_gguf.py and llama-quantize make with it
memory    peak memory of convert_to_gguf.py alone, beside the 1.1 B figure of the issue

Each side is a process of its own; CPU seconds are user + system time, ours with the imports, the
sha256 of the file and all else that the script does but the proof (--verify off).
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export_models import SHAPES, Disk, Shape, same_files
from measuring import FINETUNE, SHARED_DATA, Cost, machine, measure, table

SIDES = Path(__file__).with_name("export_sides.py")
NAME = "random"
TYPES = ("Q4_0", "Q8_0", "Q4_K_M", "Q5_K_M")
PARTS = ("convert", "merge", "fly", "imatrix")
MEMORY_BAR, MERGE_BAR = 120, 400  # MB


@dataclass(frozen=True)
class Work:
    """What all parts share: the model, and where llama.cpp's tools are."""

    folder: Path
    shape: Shape
    types: tuple[str, ...]
    llama_cpp: Path | None

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def adapter(self) -> Path:
        return self.folder / "lora_adapter"

    @property
    def settings(self) -> Path:
        """An empty config.yaml, so that nothing of the user's takes part."""
        return self.folder / "config.yaml"

    def tool(self, name: str) -> Path:
        return self.llama_cpp / "build" / "bin" / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny shape instead of 1.1 B")
    parser.add_argument("--shape", choices=list(SHAPES), default="1.1b")
    parser.add_argument("--types", default=",".join(TYPES), help="with commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas")
    parser.add_argument("--folder", type=Path, help="where to work; kept, with the model, for more")
    options = parser.parse_args()
    name = "small" if options.small else options.shape
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        work = Work(folder, SHAPES[name], tuple(options.types.split(",")), _llama_cpp())
        _require_disk(work)
        _side("write_inputs", name, work.model, work.adapter)
        work.settings.write_text("{}\n", encoding="utf-8")
        for part in options.parts.split(","):
            RUN[part](work)


def _require_disk(work: Work) -> None:
    """The model, and once more for what is made of it; the peer's F16 file comes on top."""
    work.folder.mkdir(parents=True, exist_ok=True)
    needed = (3 if work.llama_cpp else 2) * 2 * work.shape.parameters
    free = shutil.disk_usage(work.folder).free
    if free < needed:
        raise SystemExit(f"{work.folder}: {needed / 1e9:.0f} GB needed, {free / 1e9:.0f} GB free")


def _llama_cpp() -> Path | None:
    named = os.environ.get("LLAMA_CPP_DIR")
    if named and (Path(named) / "build" / "bin" / "llama-quantize").is_file():
        return Path(named)
    print("llama.cpp's tools are missing: set LLAMA_CPP_DIR to a checkout with build/bin")
    return None


def compare_conversions(work: Work) -> None:
    """One row a type: both sides' CPU, memory and disk, and whether the files are the same."""
    half, f16 = work.folder / "peer-F16.gguf", None
    if work.llama_cpp:
        f16 = convert_by_llama_cpp(work, work.model, half)
    rows = []
    for name in work.types:
        cost, file, temporary = convert_by_us(work, name, "--through-f16")
        bar = 0.8 if "_K" in name else 0.4
        row = [name, cost.cpu, cost.megabytes, temporary]
        if f16:
            theirs = work.folder / f"peer-{name}.gguf"
            quantize = measure([work.tool("llama-quantize"), half, theirs, name, "1"])
            cpu = f16.cpu + quantize.cpu
            same = "identical" if same_files(file, theirs) else "DIFFERENT"
            memory = max(f16.megabytes, quantize.megabytes)
            row += [cpu, memory, half.stat().st_size / 1e6, f"{cost.cpu / cpu:.2f}x", bar, same]
            theirs.unlink()
        rows.append(row)
        file.unlink()
    half.unlink(missing_ok=True)
    headers = ["type", "CPU s", "MB", "temporary MB"]
    headers += ["peer CPU s", "peer MB", "peer's temporary MB", "CPU", "bar", "cmp"] if f16 else []
    table(f"Conversion, {work.shape.name} (peak memory: bar {MEMORY_BAR} MB)", headers, rows)


def compare_merges(work: Work) -> None:
    """Ours and peft's merge of the same adapter, tensor by tensor."""
    merged, theirs = work.folder / "merged_model", work.folder / "merged_by_peft"
    ours = merge_by_us(work, merged)
    peer = _side("merge_by_peft", work.model, work.adapter, theirs)
    found = _side("compare_folders", merged, theirs).results
    same = f"{found['equal']} of {found['tensors']} tensors identical"
    rows = [["SlimTune", ours.cpu, ours.megabytes, same], ["peft", peer.cpu, peer.megabytes, ""]]
    table(
        f"Merge, {work.shape.name} (peak memory: bar {MERGE_BAR} MB)",
        ["side", "CPU s", "MB", "to the bit"],
        rows,
    )


def compare_on_the_fly(work: Work) -> None:
    """Merge while converting against merge, then convert."""
    merged, name = work.folder / "merged_model", work.types[-1]
    if not merged.is_dir():
        merge_by_us(work, merged)
    then, file, _ = convert_by_us(work, name, model=merged)
    file = file.rename(work.folder / "then.gguf")
    fly, other, temporary = convert_by_us(work, name, "--lora-model", work.adapter)
    same = "identical" if same_files(file, other) else "DIFFERENT"
    rows = [
        ["merged folder, converted", then.cpu, then.megabytes, "", ""],
        ["merged while converted", fly.cpu, fly.megabytes, temporary, same],
    ]
    headers = ["way", "CPU s", "MB", "temporary MB", "cmp"]
    table(f"Merging on the fly, {work.shape.name}, {name}", headers, rows)
    file.unlink()
    other.unlink()


def compare_importance(work: Work) -> None:
    """Sums of squares by transformers' layers and by llama-imatrix, on one text and its chunks."""
    if not work.llama_cpp:
        return
    text, half = SHARED_DATA / "text" / "tinyshakespeare.txt", work.folder / "peer-F16.gguf"
    convert_by_llama_cpp(work, work.model, half)
    theirs = work.folder / "imatrix.gguf"
    tool = [work.tool("llama-imatrix"), "-m", half, "-f", text, "-o", theirs]
    peer = measure([*tool, "-c", "256", "--chunks", "4", "-t", "1", "-ngl", "0"])
    ours = _side("measure_importance", work.model, text, theirs)
    worst = ours.results["worst"]
    rows = [["SlimTune", ours.cpu, f"{worst:.2%}"], ["llama-imatrix", peer.cpu, ""]]
    table(
        f"Importance of {work.shape.name}, 4 chunks of 256 tokens",
        ["side", "CPU s", "largest difference of a matrix"],
        rows,
    )
    rows = []
    for name in work.types:
        _, file, _ = convert_by_us(work, name, "--through-f16", "--imatrix", theirs)
        output = work.folder / f"peer-{name}.gguf"
        words = f"{work.tool('llama-quantize')} --imatrix {theirs.name} {half} {output} {name} 1"
        measure(["sh", "-c", f"cd {work.folder} && {words}"])
        rows.append([name, "identical" if same_files(file, output) else "DIFFERENT"])
        file.unlink()
        output.unlink()
    table(f"Files made with llama-imatrix's matrix, {work.shape.name}", ["type", "cmp"], rows)
    half.unlink()


def show_memory(work: Work) -> None:
    """Peak memory alone: it must not depend on the size of the model."""
    rows = []
    for name in work.types:
        cost, file, temporary = convert_by_us(work, name)
        rows.append([name, cost.cpu, cost.megabytes, temporary, file.stat().st_size / 1e6])
        file.unlink()
    headers = ["type", "CPU s", "MB", "temporary MB", "file MB"]
    table(f"Conversion of {work.shape.name}: memory (bar {MEMORY_BAR} MB)", headers, rows)


RUN: dict[str, Callable[[Work], None]] = {
    "convert": compare_conversions,
    "merge": compare_merges,
    "fly": compare_on_the_fly,
    "imatrix": compare_importance,
    "memory": show_memory,
}


def convert_by_us(
    work: Work, name: str, *flags: str | Path, model: Path | None = None
) -> tuple[Cost, Path, float]:
    """(cost, file, largest MB on disk beyond the file) of convert_to_gguf.py."""
    output = work.folder / "ours"
    shutil.rmtree(output, ignore_errors=True)
    words = ["--model-path", model or work.model, "--quantization", name, "--output-dir", output]
    words += ["--model-name", NAME, "--verify", "off", "--overwrite", *flags]
    words += ["--config", work.settings]
    with Disk(output) as disk:
        cost = measure([sys.executable, FINETUNE / "convert_to_gguf.py", *words])
    file = output / f"{NAME}-{name}.gguf"
    return cost, file, max(0.0, disk.peak - file.stat().st_size) / 1e6


def convert_by_llama_cpp(work: Work, model: Path, output: Path) -> Cost:
    """convert_hf_to_gguf.py to F16, with the gguf-py beside it."""
    script = work.llama_cpp / "convert_hf_to_gguf.py"
    words = [model, "--outfile", output, "--outtype", "f16", "--model-name", NAME]
    paths = {"PYTHONPATH": str(work.llama_cpp / "gguf-py")}
    return measure([sys.executable, script, *words], environment=paths)


def merge_by_us(work: Work, output: Path) -> Cost:
    words = ["--base-model", work.model, "--lora-model", work.adapter, "--output-dir", output]
    words += ["--config", work.settings, "--merge", "--overwrite"]
    return measure([sys.executable, FINETUNE / "evaluate_model.py", *words])


def _side(name: str, *words: str | Path) -> Cost:
    """A function of export_sides in a process of its own: torch must not weigh on this one.

    Linux counts the memory of the process that starts another into the other's peak.
    """
    return measure([sys.executable, SIDES, name, *words])


if __name__ == "__main__":
    main()
