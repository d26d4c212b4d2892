"""What a student learns from its teacher as a 16-bit folder, and as a GGUF file: side by side.

    python benchmarks/teachers.py              # the sample's teacher and rows as they come
    python benchmarks/teachers.py --rows 400   # fewer rows, in minutes

The sample's fine-tuned model with a third of its FFN neurons cut away, taught by itself uncut: as
the folder, as Q8_0 and as Q4_K_M. The validation loss is α · KL to what that teacher said + (1 - α)
· cross entropy, the perplexity that of the rows alone, both on rows kept aside. The teacher is
asked alone, as the combined run's stage does it: peak memory is that of the whole process tree,
less what the same run takes where the answers are there already. Then each student learns from what
was said, with the same seed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import FINETUNE, Cost, machine, measure, table

sys.path.insert(0, str(FINETUNE))
sys.path.insert(0, str(FINETUNE.parent / "tests"))

from running import compared_here, succeeds  # noqa: E402  a start of Python costs CPU seconds

WHOLE, PRUNED = "models/sample/teacher", "models/pruned"
TYPES = ("Q8_0", "Q4_K_M")
SETTINGS = """\
model: {{device: cpu, base_model: {whole}}}
sample: {{rows: {rows}, text_lines: {texts}}}
pruning: {{model_path: {whole}}}
distillation: {{student_model: {pruned}, text_passages: {texts}, epochs: {epochs},
  learning_rate: 3e-4}}
evaluation: {{lora_model: null}}
gguf: {{model_path: {whole}, verify: "off"}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1700, help="of the sample, all splits together")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = options.rows // 2
        told = {"rows": options.rows, "texts": texts, "epochs": options.epochs}
        settings = SETTINGS.format(whole=WHOLE, pruned=PRUNED, **told)
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
        teachers = make_world(folder)
        sides = [side(folder, label, teacher) for label, teacher in teachers.items()]
        matches = compared(folder, [PRUNED, *(f"models/taught by {one}" for one in teachers)])
    rows = [("none, only pruned", "", "", "", "", sides[0]["before"], matches["pruned"])]
    for one in sides:
        figures = (one["bytes"] / 1e6, one["peak"], one["cpu"], one["loss"], one["perplexity"])
        rows.append((one["label"], *figures, matches[f"taught by {one['label']}"]))
    headers = ("teacher", "on disk MB", "peak MB", "CPU s", "validation loss", "perplexity")
    headers += ("match %",)
    table(f"a student of {WHOLE}, {options.rows} rows", headers, rows)


def script(folder: Path, name: str, *words: object) -> None:
    """Run in this process."""
    succeeds(name, "--config", folder / "config.yaml", *words)


def asked(folder: Path, *words: object) -> Cost:
    """The combined run's stage that asks the teacher, in a process of its own."""
    file, config = FINETUNE / "train_pruned_distilled.py", folder / "config.yaml"
    command = [sys.executable, file, "--config", config, "--stages", "cache", "--overwrite"]
    return measure([*command, *map(str, words)])


def make_world(folder: Path) -> dict[str, str]:
    """Rows, the pruned student, and the teacher in each form: label -> what names it."""
    script(folder, "create_sample_data")
    script(folder, "prepare_data")
    script(folder, "model_pruning", "--output-dir", folder / PRUNED)
    for kind in TYPES:
        name = ("--model-name", "teacher", "--output-dir", folder / "models/gguf")
        script(folder, "convert_to_gguf", "--quantization", kind, *name)
    files = {kind: f"models/gguf/teacher-{kind}.gguf" for kind in TYPES}
    return {"16-bit folder": WHOLE} | files


def side(folder: Path, label: str, teacher: str) -> dict[str, Any]:
    """The teacher asked alone, and the student that has learned from what it said."""
    place, taught = folder / teacher, folder / f"models/taught by {label}"
    words = ("--teacher-model", place, "--cache-dir", folder / f"cache of {label}")
    asking, idle = (asked(folder, *words) for _ in range(2))  # the second finds its answers
    script(folder, "knowledge_distillation", *words, "--output-dir", taught)
    learned = json.loads((taught / "run.json").read_text(encoding="utf-8"))["metrics"]
    weights = [place] if place.is_file() else list(place.glob("*.safetensors"))
    return {
        "label": label,
        "bytes": sum(file.stat().st_size for file in weights),
        "peak": (asking.peak - idle.peak) / 1e6,
        "cpu": asking.cpu - idle.cpu,
        "before": learned["perplexity_before"],
        "loss": learned["validation_loss_best"],
        "perplexity": learned["perplexity_after"],
    }


def compared(folder: Path, models: list[str]) -> dict[str, float]:
    """Exact match of each on the test rows, in per cent, by its label."""
    named = ",".join(str(folder / one) for one in models)
    table_file = folder / "evaluation/results.csv"
    with compared_here():
        script(folder, "evaluate_model", "--models", named, "--output", table_file)
    metrics = table_file.with_name("results_metrics.json").read_text(encoding="utf-8")
    return {one["label"]: one["exact_match"]["score"] for one in json.loads(metrics)["models"]}


if __name__ == "__main__":
    main()
