"""What a student learns from its teacher as a 16-bit folder, as GGUF files, and from answers alone.

    OMP_NUM_THREADS=1 python benchmarks/teachers.py              # a few minutes
    OMP_NUM_THREADS=1 python benchmarks/teachers.py --rows 1700  # the sample's rows as they come

The sample's fine-tuned model with half of its FFN neurons cut away, taught by itself uncut: as the
folder, as Q8_0 and Q4_K_M read by llama.cpp, and as Q8_0 that writes answers, as a server's model
would. Same rows, texts, rate, epochs and seed. The perplexity is that of the reference answers to
test rows that no student learned from, the match that of the student's own answers. CPU seconds are
those of this process and of llama.cpp's, until the student begins to learn, and from then on.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from measuring import FINETUNE, machine, table

sys.path.insert(0, str(FINETUNE))
sys.path.insert(0, str(FINETUNE.parent / "tests"))

from running import compared_here, run, succeeds  # noqa: E402  a start of Python costs CPU seconds

from slimtune.config import Config  # noqa: E402
from slimtune.errors import ExitCode  # noqa: E402
from slimtune.training import distillation_stage  # noqa: E402
from slimtune.training.lora import Learner  # noqa: E402

WHOLE, PRUNED = "models/sample/teacher", "models/pruned"
TYPES = ("Q8_0", "Q4_K_M")
SETTINGS = """\
model: {{device: cpu, base_model: {whole}}}
sample: {{rows: {rows}, text_lines: {texts}}}
pruning: {{model_path: {whole}, ffn_ratio: 0.5}}
distillation: {{student_model: {pruned}, text_passages: {texts}, epochs: {epochs},
  learning_rate: 3e-4}}
evaluation: {{lora_model: null, general: "off"}}
gguf: {{model_path: {whole}, verify: "off"}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="of the sample, all splits together")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, texts = Path(name), options.rows // 2
        told = {"rows": options.rows, "texts": texts, "epochs": options.epochs}
        settings = SETTINGS.format(whole=WHOLE, pruned=PRUNED, **told)
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
        make_world(folder)
        sides = [side(folder, *one) for one in TEACHERS]
        found = compared(folder, [WHOLE, PRUNED, *(one["label"] for one in sides if one["taught"])])
    rows = [(said, "", "", "", *found[name]) for said, name in NOT_TAUGHT]
    for one in sides:
        figures = one["bytes"] / 1e6, one["asking"], one["learning"]
        rows.append((one["label"], *figures, *found.get(one["label"], WORSE)))
    headers = ("teacher", "on disk MB", "asking CPU s", "learning CPU s", "perplexity", "match %")
    table(f"a student of {WHOLE}, {options.rows} rows, {options.epochs} epochs", headers, rows)


WORSE = ("got worse", "")  # on the rows kept aside: exit 5, and no student is written
NOT_TAUGHT = (("(the teacher itself)", "teacher"), ("none, only pruned", "pruned"))
# label, what names it, more words
TEACHERS = (
    ("16-bit folder", WHOLE, ()),
    *((kind, f"models/gguf/teacher-{kind}.gguf", ()) for kind in TYPES),
    ("answers of Q8_0", "models/gguf/teacher-Q8_0.gguf", ("--mode", "sequence")),
)


def script(folder: Path, name: str, *words: object) -> None:
    """Run in this process."""
    succeeds(name, "--config", folder / "config.yaml", *words)


def make_world(folder: Path) -> None:
    """Rows, the pruned student, and the teacher in each form."""
    script(folder, "create_sample_data")
    script(folder, "prepare_data")
    script(folder, "model_pruning", "--output-dir", folder / PRUNED)
    for kind in TYPES:
        name = ("--model-name", "teacher", "--output-dir", folder / "models/gguf")
        script(folder, "convert_to_gguf", "--quantization", kind, *name)


def side(folder: Path, label: str, teacher: str, more: tuple[str, ...]) -> dict[str, Any]:
    """The student that has learned from this teacher, and what the two took."""
    place = folder / teacher
    words = ("--teacher-model", place, "--cache-dir", folder / f"cache of {label}", *more)
    with learning_begins() as begun:
        before = cpu_seconds()
        told = ("--config", folder / "config.yaml", *words, "--output-dir", folder / label)
        ran = run("knowledge_distillation", *told)
        after = cpu_seconds()
    assert ran.code in (0, ExitCode.QUALITY), ran.err
    weights = [place] if place.is_file() else list(place.glob("*.safetensors"))
    return {
        "label": label,
        "taught": ran.code == 0,
        "bytes": sum(file.stat().st_size for file in weights),
        "asking": begun[0] - before,
        "learning": after - begun[0],
    }


@contextmanager
def learning_begins() -> Iterator[list[float]]:
    """The CPU seconds at which each student began to learn, within."""
    begun: list[float] = []
    load = distillation_stage._load_whole  # comes after the teacher's last word

    def noted(model: str, config: Config) -> Learner:
        begun.append(cpu_seconds())
        return load(model, config)

    with patch.object(distillation_stage, "_load_whole", noted):
        yield begun


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def compared(folder: Path, models: list[str]) -> dict[str, tuple[float, float]]:
    """Perplexity and exact match (%) of each on the test rows, by its label."""
    named = ",".join(str(folder / one) for one in models)
    table_file = folder / "evaluation/results.csv"
    with compared_here():
        script(folder, "evaluate_model", "--models", named, "--output", table_file)
    metrics = table_file.with_name("results_metrics.json").read_text(encoding="utf-8")
    return {
        one["label"]: (one["perplexity"]["score"], one["exact_match"]["score"])
        for one in json.loads(metrics)["models"]
    }


if __name__ == "__main__":
    main()
