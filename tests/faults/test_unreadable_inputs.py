"""Any file of an input that the system does not hand over is the input's fault: exit 3, by name.

The system itself refuses here: a folder where a file is, a link in a circle, a file that opens and
cannot be read (/proc/self/mem, whose first page nobody may read: an I/O error).
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import compared_in_forks, refused, run

pytestmark = pytest.mark.faults


def a_folder(file: Path) -> None:
    file.mkdir()


def a_circle(file: Path) -> None:
    file.symlink_to(file.name)


def an_io_error(file: Path) -> None:
    file.symlink_to("/proc/self/mem")


FAULTS = [a_folder, a_circle, an_io_error]
MODEL = ["base/config.json", "base/model.safetensors"]
ROWS = ["rows/train_train.jsonl"]
VALIDATION, TEST = "rows/train_validation.jsonl", "rows/train_test.jsonl"
ADAPTER = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
TRAINING = ("--base-model", "base", "--train-data", "rows/train_train.jsonl", "--output-dir", "out")
TEACHING = ("--student-model", "base", "--teacher-model", "base", "--text-data", "text.txt")
ASKING = ("--base-model", "base", "--lora-model", "adapter", "--test-data", TEST)
READS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "prepare_data": (("--input", "raw.json", "--output-dir", "out"), ["raw.json"]),
    "train_lora": ((*TRAINING, "--val-data", VALIDATION), [*MODEL, *ROWS, VALIDATION]),
    "model_pruning": (("--model-path", "base", *TRAINING[2:]), [*MODEL, *ROWS]),
    "knowledge_distillation": (
        (*TEACHING, *TRAINING[2:], "--cache-dir", "cache"),
        [*MODEL, *ROWS, "text.txt"],
    ),
    "train_pruned_distilled": (
        (*TRAINING, "--teacher-model", "base", "--text-data", "text.txt"),
        [*MODEL, *ROWS, "text.txt", TEST],
    ),
    "evaluate_model": (
        (*ASKING, "--output", "out/results.csv"),
        [*MODEL, *ADAPTER, TEST],
    ),
    "convert_to_gguf": (
        ("--model-path", "base", "--lora-model", "adapter", "--output-dir", "out")
        + ("--verify", "quick", "--quantization", "F16", "--train-data", ROWS[0]),
        [*MODEL, *ADAPTER, TEST],
    ),
}
CASES = [(script, file) for script, (_, files) in READS.items() for file in files]


@pytest.fixture
def world(project, rows, adapter, tmp_path, monkeypatch) -> Path:
    shutil.copytree(project / "base", tmp_path / "base")
    shutil.copytree(rows, tmp_path / "rows")
    shutil.copytree(adapter, tmp_path / "adapter")
    for name in ("raw.json", "text.txt", "config.yaml"):
        shutil.copy(project / name, tmp_path)
    config = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    named = f"evaluation: {{test_data: {TEST}, "  # convert_to_gguf.py has no flag for it
    (tmp_path / "config.yaml").write_text(config.replace("evaluation: {", named), "utf-8")
    for record in ("rows/train_run.json", "adapter/run.json"):  # or a file counts as changed
        (tmp_path / record).unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("script", "file"), CASES)
def test_an_input_that_the_system_keeps_back(
    script: str, file: str, fault: Callable[[Path], None], world: Path
) -> None:
    if fault is an_io_error and sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    words, _ = READS[script]
    Path(file).unlink()
    fault(Path(file))
    ran = run(script, "--config", "config.yaml", *words, "--dry-run")
    assert ran.code == 3, f"exit {ran.code}\n{ran.err}"
    assert Path(file).name in "\n".join(ran.error) or Path(file).parent.name in ran.error[0]
    assert "Traceback" not in ran.err and not list(Path().glob("out/[!.]*"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("file", ["base/tokenizer.model", "adapter/adapter_model.safetensors"])
def test_what_a_process_of_a_comparison_cannot_read_is_the_inputs_fault_too(file, world) -> None:
    """Its calls stay behind where the error passes on to us, and with them which file it was."""
    Path(file).unlink()
    an_io_error(Path(file))
    words, _ = READS["evaluate_model"]
    with compared_in_forks():
        told = refused(3, file, "evaluate_model", "--config", "config.yaml", *words)
    assert told[0].endswith("cannot be read")


def test_a_plain_text_in_another_encoding_is_named_with_its_byte(tmp_path) -> None:
    """It ended as a bug in distillation and in the combined run."""
    from slimtune.artifacts.files import text_lines
    from slimtune.errors import InputError

    file = tmp_path / "my text.txt"
    file.write_bytes("café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"byte 3 is not UTF-8.*\n.*\n.*iconv .*'.*my text.txt'"):
        text_lines(file, "distillation.text_data", "name a text file")
    file.write_text("café\n\n 好 \n", encoding="utf-8")
    assert text_lines(file, "distillation.text_data", "") == ["café", " 好 "]
    with pytest.raises(InputError, match="not there"):
        text_lines(tmp_path / "none", "distillation.text_data", "name a text file")
