"""What a GGUF of a given size loses: types by sensitivity beside llama.cpp's mixtures, same bytes.

    python benchmarks/size.py                          # the sample model and stories260K
    python benchmarks/size.py --smollm2 FOLDER         # and SmolLM2-135M-Instruct, in this folder
    python benchmarks/size.py --only stories260K --bytes-of Q4_K_M
    python benchmarks/size.py --only memory            # sensitivity and conversion of 1.1 B
    python benchmarks/size.py --only memory --layers 2 # the same with fewer layers, for a quick try

For each model and mixture: the KL divergence from the model in F32 over all tokens of rows that
were not measured on, by llama.cpp's own logits of the written files: the mixture as it is, with an
importance matrix, and a file of the same bytes whose types were chosen by sensitivity; what that
one was predicted to lose; the CPU seconds of its search beside those of writing it.

SmolLM2 as packages bring it lies on a Q4_1 grid, where Q4_1 loses nothing and says nothing: uniform
noise of one grid step is added ("dithered"). Its rows are Banking77's. The sample model is made by
the scripts here, fine-tuned and merged; stories260K reads tinystories.txt. Each side is a process
of its own.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from export_models import SHAPES, write_model
from measuring import FINETUNE, SHARED_DATA, machine, measure, report, table

sys.path.insert(0, str(FINETUNE))
MIXTURES = ("Q4_K_M", "Q4_0", "Q5_K_M")
MODELS = ("sample", "stories260K", "smollm2")
CALIBRATION, KEPT_BACK, HELD = 10_000, 5_000, 3_000  # tokens
LONGEST = 192
MEMORY = {"sensitivity pass, 4 × 256 tokens": 1500, "conversion with a target of 5 bits": 120}
_SYSTEM = "Name the intent of this message to a bank, as one label."


@dataclass(frozen=True)
class Built:
    """One mixture's three files, and what ours was expected to lose and cost."""

    mixture: str
    plain: str
    imatrix: str
    ours: str
    expected: float
    search: float
    conversion: float
    types: dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=(*MODELS, "memory"))
    parser.add_argument("--bytes-of", default=",".join(MIXTURES), help="mixtures, with commas")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M-Instruct as a model folder")
    parser.add_argument("--folder", type=Path, help="where to work; kept, for another run")
    parser.add_argument("--layers", type=int, help="of the 1.1 B, for its memory; 22 unless told")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        SIDES[options.side[0]](*map(Path, options.side[1:3]), *options.side[3:])
        return
    print(machine(("torch", "transformers", "gguf", "xllamacpp")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.only == "memory":
            show_memory(folder, options.layers)
            return
        for name in [options.only] if options.only else MODELS:
            if name == "smollm2" and not options.smollm2:
                print("\nSmolLM2: name its folder with --smollm2")
                continue
            show(name, folder / name, options.bytes_of, options.smollm2)


def show(name: str, folder: Path, mixtures: str, smollm2: Path | None) -> None:
    """The table of one model."""
    folder.mkdir(parents=True, exist_ok=True)
    run_side("prepare", folder, smollm2 or folder, name)
    built = run_side("build", folder, folder, mixtures)["built"]
    names = [one[side] for one in built for side in ("plain", "imatrix", "ours")]
    found = run_side("divergences", folder, folder, json.dumps(names))["found"]
    rows = []
    for one in (Built(**entry) for entry in built):
        plain, imatrix, ours = (found[file] for file in (one.plain, one.imatrix, one.ours))
        rows.append(
            (
                f"{one.mixture}, {(folder / one.plain).stat().st_size / 1e6:.3f} MB",
                plain["kl"],
                imatrix["kl"],
                ours["kl"],
                f"{ours['kl'] / imatrix['kl']:.2f}",
                f"{ours['kl'] / plain['kl']:.2f}",
                one.expected,
                f"{one.expected / ours['kl'] - 1:+.0%}",
                f"{one.search / one.conversion:.2f}",
                f"{ours['same']:.1%}",
            )
        )
    headers = ("bytes of", "plain", "imatrix", "ours", "of imatrix (bar 0.65)", "of plain (0.5)")
    headers += ("predicted", "off (25 %)", "search / writing, CPU (1)", "same first choice")
    tokens = found["tokens"]
    table(f"{name}: KL divergence in nats a token, over {tokens:,} tokens", headers, rows)
    for one in built:
        print(f"  {one['mixture']}: {one['types']}")


def show_memory(folder: Path, layers: int | None) -> None:
    """Peak memory and CPU of the sensitivity pass, and of the conversion with what it found.

    Both at 1.1 B parameters, or with fewer `layers`; 1,024 tokens; one thread.
    """
    shape = SHAPES["1.1b"] if layers is None else replace(SHAPES["1.1b"], layers=layers)
    model = folder / f"1.1b-{shape.layers}"
    write_model(model, shape, SHARED_DATA / "llama2-tokenizer" / "tokenizer.model")
    pass_ = measure([sys.executable, __file__, "--side", "sensitivity", model, folder])
    settings = folder / "memory.yaml"
    settings.write_text("{}", encoding="utf-8")
    words = ["--config", settings, "--model-path", model, "--model-name", "sized"]
    words += ["--output-dir", folder / "gguf", "--imatrix", folder / "imatrix.gguf"]
    words += ["--target-bits", "5", "--verify", "off", "--overwrite"]
    conversion = measure([sys.executable, FINETUNE / "convert_to_gguf.py", *words])
    costs = zip(MEMORY.items(), (pass_, conversion), strict=True)
    rows = [(what, one.megabytes, bar, one.cpu) for (what, bar), one in costs]
    table(f"{shape.parameters / 1e9:.2f} B parameters", ("", "MB", "bar", "CPU s"), rows)


def prepare(folder: Path, smollm2: Path, name: str) -> None:
    """`folder`/model, and ids.json with the token rows to measure on and those kept back."""
    if (folder / "ids.json").is_file():
        return
    model = folder / "model"
    if name == "stories260K":
        from stories import MODEL, held_out

        model.symlink_to(MODEL)
        rows = held_out()  # neither half was read by anybody
        calibration, kept_back, held = rows[::2], rows[::2][::-1], rows[1::2]
    elif name == "sample":
        model.symlink_to(fine_tuned_sample(folder))
        calibration = _encoded(model, folder / "rows" / "train_train.jsonl")
        kept_back = _encoded(model, folder / "rows" / "train_validation.jsonl")
        held = _encoded(model, folder / "rows" / "train_test.jsonl")
    else:
        _dither(smollm2, model)
        data = SHARED_DATA / "banking77"
        calibration = _banking(model, data / "train.csv")
        kept_back = _banking(model, data / "train.csv", begin=1)
        held = _banking(model, data / "test.csv")
    parts = {"calibration": _first(calibration, CALIBRATION), "held": _first(held, HELD)}
    parts["kept back"] = _first(kept_back, KEPT_BACK)
    (folder / "ids.json").write_text(json.dumps(parts), encoding="utf-8")


def build(folder: Path, _: Path, mixtures: str) -> None:
    """The reference in F32, and three files for each mixture."""
    from slimtune.config import Config
    from slimtune.export import allocation, importance
    from slimtune.export.gguf_writer import write_file
    from slimtune.export.imatrix import read_imatrix, write_imatrix
    from slimtune.export.plan import Encoding, as_source
    from slimtune.export.preflight import preflight
    from slimtune.inference.stack import batches_of

    model, threads = folder / "model", 1
    plan = preflight(model, "F32")
    write_file({folder / "reference.gguf": plan}, threads=threads, name="m")
    rows = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    batches, kept_back = (batches_of(rows[part], 1024) for part in ("calibration", "kept back"))
    if not (folder / "imatrix.gguf").is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            found = importance.observe(
                as_source(model),
                plan,
                batches,
                Path(scratch),
                sensitive=True,
                kept_back=kept_back,
            )
        sums, counts, costs = found
        write_imatrix(folder / "imatrix.gguf", sums, counts, "ids.json", LONGEST, costs)
    encoding = Encoding(importance=read_imatrix(folder / "imatrix.gguf"))
    built = []
    for mixture in mixtures.split(","):
        files = [f"{mixture}-{side}.gguf" for side in ("plain", "imatrix", "ours")]
        plain, weighted, ours = (folder / file for file in files)
        write_file({plain: preflight(model, mixture)}, threads=threads, name="m")
        known = preflight(model, mixture, encoding=encoding)
        write_file({weighted: known}, threads=threads, name="m")
        gguf = Config().gguf.model_copy(update={"target_size": plain.stat().st_size})
        started = time.process_time()
        allocated = allocation.allocate(known, gguf, "m")
        searched = time.process_time()
        write_file({ours: allocated}, threads=threads, name="m")
        written = time.process_time()
        if ours.stat().st_size > plain.stat().st_size:
            raise SystemExit(f"{ours}: larger than {plain}")
        built.append(
            Built(
                mixture,
                *files,
                expected=allocated.allocation.loss,
                search=searched - started,
                conversion=written - searched,
                types=allocated.types,
            )
        )
    report(built=[asdict(one) for one in built])


def divergences(folder: Path, _: Path, names: str) -> None:
    """KL divergence of each file from the reference, and how often the first choice is the same."""
    from slimtune.inference.distributions import Distributions
    from slimtune.inference.llama_cpp import LlamaCpp

    rows = json.loads((folder / "ids.json").read_text(encoding="utf-8"))["held"]
    numbers = frozenset(range(len(rows)))
    pairs = [(row[:1], row[1:]) for row in rows]
    with tempfile.TemporaryDirectory(dir=folder) as kept:

        def read(name: str, what: Distributions) -> list:
            plans = [what.row(number, range(len(row) - 1)) for number, row in enumerate(rows)]
            with LlamaCpp(folder / name, context=max(map(len, rows)) + 1, threads=1) as model:
                return [losses for _, losses in model.losses(pairs, plans)]

        read("reference.gguf", Distributions(numbers, keep=Path(kept)))
        found = {
            name: _mean(read(name, Distributions(numbers, original=Path(kept))))
            for name in json.loads(names)
        }
    report(found=found | {"tokens": sum(len(row) - 1 for row in rows)})


def sensitivity(model: Path, folder: Path) -> None:
    """The pass alone, on random ids; `folder`/imatrix.gguf has what it found."""
    import torch

    from slimtune.export import importance
    from slimtune.export.imatrix import write_imatrix
    from slimtune.export.plan import as_source
    from slimtune.export.preflight import preflight
    from slimtune.inference.stack import batches_of

    ids = torch.randint(3, 32_000, (4, 256), generator=torch.Generator().manual_seed(0))
    plan, batches = preflight(model, "F16"), batches_of(ids.tolist(), 1024)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = importance.observe(as_source(model), plan, batches, Path(scratch), sensitive=True)
    sums, counts, costs = found
    write_imatrix(folder / "imatrix.gguf", sums, counts, "random ids", 256, costs)


SIDES = {side.__name__: side for side in (prepare, build, divergences, sensitivity)}


def run_side(name: str, *words: str | Path) -> dict:
    return measure([sys.executable, __file__, "--side", name, *words]).results


def _mean(losses: list) -> dict[str, float]:
    """Over all tokens of all rows."""
    kl = [value for one in losses for value in one.divergences]
    same = [value for one in losses for value in one.agreements]
    return {"kl": sum(kl) / len(kl), "same": sum(same) / len(same)}


def _first(rows: list[list[int]], tokens: int) -> list[list[int]]:
    """As many rows as hold so many tokens."""
    taken, total = [], 0
    for row in rows:
        if total >= tokens:
            break
        taken.append(row)
        total += len(row)
    return taken


def _encoded(model: Path, file: Path) -> list[list[int]]:
    from slimtune import prompts
    from slimtune.data.rows import read_rows
    from slimtune.models import tokenizers

    tokenizer = tokenizers.load_tokenizer(model)
    template = prompts.template_of("auto", tokenizer)
    rows = [row["messages"] for row in read_rows(file)]
    return [prompts.encode(tokenizer, row, template, LONGEST)["input_ids"] for row in rows]


def _banking(model: Path, file: Path, begin: int = 0) -> list[list[int]]:
    """240 rows of Banking77 as conversations, evenly: the file is sorted by intent."""
    import csv

    from slimtune import prompts
    from slimtune.models import tokenizers

    tokenizer = tokenizers.load_tokenizer(model)
    template = prompts.template_of("auto", tokenizer)
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    step = max(1, len(rows) // 240)
    encoded = []
    for row in rows[begin::step]:
        said = zip(
            ("system", "user", "assistant"), (_SYSTEM, row["text"], row["category"]), strict=True
        )
        messages = [{"role": role, "content": text} for role, text in said]
        encoded.append(prompts.encode(tokenizer, messages, template, LONGEST)["input_ids"])
    return encoded


def fine_tuned_sample(folder: Path) -> Path:
    """The sample model after the scripts' own fine-tuning, merged; what is there is kept."""
    merged = folder / "tuned" / "merged_model"
    if merged.is_dir():
        return merged
    config = folder / "config.yaml"
    config.write_text(
        "data: {input: raw/raw_data.json, output_dir: rows}\n"
        "sample: {output_dir: raw, models_dir: sample}\n"
        "model: {base_model: sample/base, device: cpu}\n"
        "training: {train_data: rows/train_train.jsonl}\n"
        "lora: {output_dir: tuned}\n"
        "evaluation: {lora_model: tuned/lora_adapter}\n",
        encoding="utf-8",
    )
    steps = (["create_sample_data"], ["prepare_data"], ["train_lora"])
    for script, *flags in (*steps, ["evaluate_model", "--merge"]):
        measure([sys.executable, FINETUNE / f"{script}.py", "--config", config, *flags])
    return merged


def _dither(source: Path, target: Path) -> None:
    """Every matrix + uniform noise of one step of its Q4_1 grid: (largest − least) / 15 of 32."""
    import torch

    from slimtune.models.weights import Checkpoint, CheckpointWriter, copy_companions

    checkpoint, generator = Checkpoint(source), torch.Generator().manual_seed(0)
    spec = {name: (torch.float32, info.shape) for name, info in checkpoint.tensors.items()}
    with CheckpointWriter(target, spec) as writer:
        for name in spec:
            values = checkpoint.read(name).float()
            if values.ndim == 2:
                blocks = values.view(-1, 32)
                step = (blocks.amax(1) - blocks.amin(1)) / 15
                noise = torch.rand(blocks.shape, generator=generator) - 0.5
                values = (blocks + noise * step[:, None]).view_as(values)
            writer.write(name, values)
    copy_companions(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = config["torch_dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
