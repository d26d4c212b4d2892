"""A folder that looks like what the eight scripts read, and how each is told where to write.

Nothing in it can be loaded: a script that gets as far as that ends with exit 3.
"""

import json
from dataclasses import dataclass
from pathlib import Path

SETTINGS = """\
model: {base_model: base, device: cpu}
data: {input: in/raw.json, output_dir: rows}
pruning: {model_path: base, output_dir: out}
distillation: {teacher_model: teacher, student_model: base, output_dir: out, text_data: null}
lora: {output_dir: out}
training: {train_data: rows/train_train.jsonl}
pruned_distilled: {output_dir: out}
evaluation: {lora_model: adapter, test_data: rows/test.jsonl, output: out/results.csv}
gguf: {model_path: base, output_dir: out, model_name: tiny, quantization: F16}
"""
_CHAT = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


def write_world(folder: Path) -> None:
    """The folders that a script of these settings reads; it runs in `folder`."""
    for name in ("in", "base", "teacher", "adapter", "rows"):
        (folder / name / "deep").mkdir(parents=True)
    for file in ("in/raw.json", "in/raw_data.json", "base/config.json", "teacher/config.json"):
        (folder / file).write_text("{}", encoding="utf-8")
    (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    for file in ("rows/train_train.jsonl", "rows/test.jsonl"):
        (folder / file).write_text(json.dumps({"messages": _CHAT}) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text(SETTINGS, encoding="utf-8")


@dataclass(frozen=True)
class Writes:
    """How a script is told to write below a folder, and what it would make there first."""

    flag: str  # names the folder; the comparison's names its file
    makes: str  # what is written in it; "" is the folder itself
    is_folder: bool
    words: tuple[str, ...] = ()

    def into(self, folder: Path) -> list[str]:
        """The flags that let a script write below `folder`."""
        target = folder / self.makes if self.flag == "--output" else folder
        return [*self.words, self.flag, str(target)]


WRITES = {
    "create_sample_data": Writes("--output-dir", "raw_data.json", False),
    "prepare_data": Writes("--output-dir", "train_train.jsonl", False),
    "model_pruning": Writes("--output-dir", "", True),
    "knowledge_distillation": Writes("--output-dir", "", True),
    "train_lora": Writes("--output-dir", "lora_adapter", True),
    "train_pruned_distilled": Writes("--output-dir", "pruned", True),
    "evaluate_model": Writes("--output", "results.csv", False, ("--lora-model", "null")),
    "convert_to_gguf": Writes("--output-dir", "tiny-F16.gguf", False),
}
