"""Each fault made to happen: the exit code, a sentence that helps, no file under the final name."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import spm_cases
from running import files_under, killed, leaves_nothing, refused, run, succeeds
from safetensors.torch import load_file, save_file
from tiny_folders import TEXT, write_tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from slimtune.export.proof import proving
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers
from slimtune.models.weights import copy_companions

SCRIPT = Path(__file__).parents[3] / "finetune" / "convert_to_gguf.py"
NORM = "model.layers.1.input_layernorm.weight"
MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("good"), hidden=64, initializer_range=0.3)


@pytest.fixture
def words(tmp_path, monkeypatch) -> Callable[[Path], list[object]]:
    """The words that convert a model into `out` below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("gguf: {model_name: m, quantization: F16}\n")
    rows = [{"instruction": text, "input": "", "output": text[:20]} for text in TEXT[:4]]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    common = ["--config", "config.yaml", "--output-dir", "out", "--test-data", "rows.json"]
    return lambda model: ["--model-path", model, *common]


def sharded(good: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(good).save_pretrained(folder, max_shard_size="100KB")
    copy_companions(good, folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def missing_shard(good: Path, folder: Path) -> None:
    sorted(sharded(good, folder).glob("*.safetensors"))[1].unlink()


def truncated_shard(good: Path, folder: Path) -> None:
    shard = sorted(sharded(good, folder).glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 100)


def four_bits(good: Path, folder: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(good, quantization_config=config)
    model.save_pretrained(folder)
    copy_companions(good, folder, without=["config.json"])


def four_bits_that_the_config_hides(good: Path, folder: Path) -> None:
    four_bits(good, folder)
    shutil.copy(good / "config.json", folder)


def spoiled(name: str, value: float) -> Callable[[Path, Path], None]:
    def spoil(good: Path, folder: Path) -> None:
        copy_companions(good, folder)
        state = load_file(good / "model.safetensors")
        state[name].view(-1)[7] = value
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def other_end(file: str, ids: object) -> Callable[[Path, Path], None]:
    def spoil(good: Path, folder: Path) -> None:
        shutil.copytree(good, folder, dirs_exist_ok=True)
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {"eos_token_id": ids}))

    return spoil


def bad_rows(good: Path, folder: Path) -> None:
    """The model is fine, the test data is not: known before the work too."""
    shutil.copytree(good, folder, dirs_exist_ok=True)
    Path("rows.json").write_text('[{"instruction": "a", "output": "b"},\n {"instruction": 1}]')


def adapter(good: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(good)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)


FAULTS = {
    "missing shard": (missing_shard, "shards missing, first model-00002"),
    "truncated shard": (truncated_shard, "model-00002"),
    "4 bits": (four_bits, "it holds model.layers.0.mlp.down_proj.weight.absmax"),
    "4 bits hidden": (four_bits_that_the_config_hides, "absmax"),
    "NaN in a norm": (spoiled(NORM, math.nan), f"{NORM} holds nan at 7"),
    "infinite norm": (spoiled(NORM, -math.inf), f"{NORM} holds -inf at 7"),
    "NaN in a matrix": (spoiled(MATRIX, math.nan), MATRIX),
    "other end": (other_end("config.json", 3), "eos_token_id is 3"),
    "other ends": (other_end("generation_config.json", [0, 3]), "eos_token_id is [0, 3]"),
    "adapter": (adapter, "--merge"),
    "bad rows": (bad_rows, "rows.json:2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_become_a_file(fault, good, words, tmp_path) -> None:
    spoil, sentence = FAULTS[fault]
    model = tmp_path / "model"
    model.mkdir()
    spoil(good, model)
    error = refused(3, sentence, "convert_to_gguf", *words(model))
    assert error[2].strip() != "do:" and leaves_nothing(tmp_path / "out")
    if "matrix" not in fault:  # only reading every byte finds that one
        refused(3, sentence, "convert_to_gguf", *words(model), "--dry-run")


def test_one_of_several_ends_may_be_the_tokenizers(good, words, tmp_path) -> None:
    other_end("generation_config.json", [3, 2])(good, tmp_path / "model")
    succeeds("convert_to_gguf", *words(tmp_path / "model"))


@pytest.mark.parametrize("name", spm_cases.NAMES)
def test_one_token_more_than_rows(name, words, tmp_path) -> None:
    """`add_special_tokens({"pad_token": ...})` without resizing: the field's first complaint."""
    tokenizer = tokenizers.load_tokenizer(spm_cases.cases(name).folder)
    rows = len(tokenizer)
    model = write_tiny_llama(tmp_path / "m", hidden=64, vocab_size=rows, num_hidden_layers=1)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizers.save_tokenizer(tokenizer, model)
    said = f"has {rows + 1} tokens, the embedding {rows} rows"
    error = refused(3, said, "convert_to_gguf", *words(model))
    assert "token was added" in error[1] and leaves_nothing(tmp_path / "out")


def test_headers_are_checked_before_torch_is_imported(good, words, tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    missing_shard(good, model)
    for arguments, code in ((words(model), 3), ([*words(good), "--dry-run"], 0)):
        command = [sys.executable, "-X", "importtime", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert done.returncode == code and "numpy" in imported
        assert not {"torch", "transformers"} & imported


@contextmanager
def signalled_child(number: int) -> Iterator[None]:
    """Sends a signal to the process that runs llama.cpp when the model is loaded and asked."""
    ask = LlamaCpp.tokenize

    def signalled(model: LlamaCpp, *text: str, **options: bool) -> list[int]:
        os.kill(model.process, number)
        return ask(model, *text, **options)

    with patch.object(LlamaCpp, "tokenize", signalled):
        yield


@pytest.mark.parametrize(
    ("number", "code", "sentence"),
    [
        (signal.SIGABRT, 5, "exit code -6"),
        (signal.SIGSEGV, 5, "exit code -11"),
        (signal.SIGKILL, 4, "memory runs out"),
        (signal.SIGSTOP, 4, "no sign of life for 1 s"),
    ],
)
def test_a_verification_that_crashes_or_hangs(
    number, code, sentence, good, words, tmp_path, monkeypatch
) -> None:
    with signalled_child(number), monkeypatch.context() as patched:
        if number == signal.SIGSTOP:  # who is dead is found out at once, however busy the machine
            patched.setattr(proving, "_PATIENCE", 1.0)
        error = refused(code, sentence, "convert_to_gguf", *words(good), "--create-modelfile")
    assert "kept as out/m-F16.failed-proof.gguf" in error[2]
    assert list(files_under(tmp_path / "out")) == ["m-F16.failed-proof.gguf"]
    assert not (tmp_path / "Modelfile").exists()
    succeeds("convert_to_gguf", *words(good))
    assert list(files_under(tmp_path / "out")) == ["m-F16.gguf", "m-F16_run.json"]


# Another program fills the disk once the checks are passed: before the tensors, or after the file.
FILLERS = {
    "preflight": "",
    "tensors": "import slimtune.export.gguf_writer as w; fill_before(w, '_write_tensors')",
    "record": "from slimtune.export.proof import proving; fill_before(proving, 'prove')",
}
DRIVER = """
import sys
sys.path.insert(0, {library!r})
import convert_to_gguf
from slimtune.script import _run

def fill_before(module, name):
    function = getattr(module, name)
    def filling(*arguments, **options):
        with open("out/other", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)): pass
            except OSError: pass
        return function(*arguments, **options)
    setattr(module, name, filling)

{fill}
sys.exit(_run(convert_to_gguf.main, "", sys.argv[1:]))
"""


def _may_mount() -> bool:
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    found = shutil.which("unshare")
    return bool(found) and subprocess.run(mount, capture_output=True).returncode == 0


@pytest.mark.skipif(not _may_mount(), reason="needs unshare -rm and a tmpfs of its own")
@pytest.mark.parametrize("moment", FILLERS)
def test_a_full_disk(moment, good, words, tmp_path) -> None:
    """A tmpfs with room for the file, or half of it; its content is listed before it vanishes."""
    succeeds("convert_to_gguf", *words(good), "--output-dir", "trial", "--verify", "off")
    pages = (tmp_path / "trial/m-F16.gguf").stat().st_size // 4096 + 8
    room = pages // 2 if moment == "preflight" else pages
    driver = DRIVER.format(library=str(SCRIPT.parent), fill=FILLERS[moment])
    (tmp_path / "driver.py").write_text(driver)
    (tmp_path / "out").mkdir()
    shell = 'mount -t tmpfs -o size=$0k tmpfs out; "$@"; code=$?; ls out >&2; exit $code'
    command = ["unshare", "-rm", "sh", "-c", shell, str(room * 4), sys.executable, "driver.py"]
    done = subprocess.run(
        [*command, *map(str, words(good)), "--verify", "quick" if moment == "record" else "off"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    assert (" free" if moment == "preflight" else "pace left") in done.stderr
    assert "do:" in done.stderr and "Traceback" not in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("m-F16")]


MOMENTS = {
    "the header is written": "slimtune.export.gguf_writer._write_tensors",
    "tensors are written": "slimtune.export.gguf_writer._write_chunk",
    "the file is whole": "slimtune.export.proof.proving.prove",
    "the record is written": "slimtune.artifacts.stages.write_json",
}


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_the_middle(moment, good, words, tmp_path) -> None:
    killed(MOMENTS[moment], lambda *_, **__: True, "convert_to_gguf", *words(good))
    assert list(tmp_path.glob("out/*.partial/*.gguf"))
    assert not list(tmp_path.glob("out/*.gguf")) and not list(tmp_path.glob("out/*.json"))
    succeeds("convert_to_gguf", *words(good), "--verify", "off")
    assert list(files_under(tmp_path / "out")) == ["m-F16.gguf", "m-F16_run.json"]
    assert not list(tmp_path.glob("out/*.partial"))
    assert run("convert_to_gguf", *words(good)).code == 2
