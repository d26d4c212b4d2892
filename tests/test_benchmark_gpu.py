"""benchmarks/gpu.py without a GPU: its tables at a tiny shape, its commands, how it fails."""

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from slimtune.config import Config
from slimtune.settings import read

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
NO_MEMORY = "#!/bin/sh\necho 'torch.OutOfMemoryError: CUDA out of memory.'\nexit 1\n"
GIB = 1 << 30

shared_data = pytest.mark.skipif(
    not (ROOT.parent / "shared" / "data" / "llama2-tokenizer").is_dir(),
    reason="Llama-2's tokenizer and Alpaca rows lie in ../shared/data",
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return importlib.import_module("gpu")


@pytest.mark.slow
@shared_data
def test_every_part_runs_without_a_gpu_and_a_side_that_fails_does_not_end_it(tmp_path) -> None:
    no_memory = tmp_path / "python"
    no_memory.write_text(NO_MEMORY, encoding="utf-8")
    no_memory.chmod(0o755)
    parts = "qlora,trainer,pruning,distil,generation"
    ran = subprocess.run(
        [sys.executable, SCRIPT, "--small", "--folder", tmp_path / "kept", "--parts", parts],
        env=os.environ | {"TRL_PYTHON": str(no_memory)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr  # one side failed
    assert ran.stdout.splitlines()[0].endswith("no GPU: a try of the script, not a measurement")
    quantised, trained, pruned, taught, answered = tables(ran.stdout)

    assert set(quantised) == {"4 rows x 1"} and set(pruned) == {"activation, refit, 8 rows"}
    assert set(taught) == {"teacher asked", "teacher cached already"}
    for line in (*quantised.values(), *pruned.values(), *taught.values()):
        assert 0.3 < float(line["resident GB"]) < 2
        off = float(line["predicted GB"]) / float(line["resident GB"]) - 1
        assert abs(off) < 0.3
        assert abs(float(line["off by"].partition("%")[0]) / 100 - off) < 0.03
        assert ("met" in line["off by"]) == (abs(off) < 0.15) or abs(abs(off) - 0.15) < 0.03
    assert float(quantised["4 rows x 1"]["tokens/s"].replace(",", "")) > 0
    assert pruned["activation, refit, 8 rows"]["tokens/s"] == "-"

    assert trained["trl"]["tokens/s"] == "out of memory"
    assert "CUDA out of memory" in ran.stderr
    ours, padded = trained["ours"], trained["padded"]
    assert float(ours["mean loss"]) == pytest.approx(float(padded["mean loss"]), abs=1e-3)
    assert padded["step losses off by"].endswith("(bar 1%: met)")
    assert padded["ours of its peak"].endswith("(bar below 1: met)")
    assert "(bar 1.5x: " in padded["ours is faster"] and ours["ours is faster"] == "-"

    assert set(answered) == {"batched", "plain"}
    assert all(float(line["new tokens/s"].replace(",", "")) > 0 for line in answered.values())
    assert (tmp_path / "kept" / "model" / "config.json").is_file()


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Each Markdown table as {first cell: {heading: cell}}."""
    found: list[dict[str, dict[str, str]]] = []
    headings: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            headings = []
        elif not headings:
            headings = cells
            found.append({})
        elif cells[0] != "---":
            found[-1][cells[0]] = dict(zip(headings, cells, strict=True))
    return found


@shared_data
def test_what_is_held_to_a_card_is_what_the_readme_says_for_it(gpu, monkeypatch, tmp_path) -> None:
    file = tmp_path / "config.yaml"
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1]
    file.write_text(block.partition("```")[0], encoding="utf-8")
    readme, _ = read("train_lora", "", ["--config", str(file)])
    for part, cap, quantization in ((gpu.qlora, 8, "nf4"), (gpu.lora, 16, "none")):
        commands = asked(gpu, monkeypatch, part, tmp_path)
        assert [held for held, _ in commands] == [cap * GIB] * 3
        assert [config.training.batch_size for _, config in commands] == [1, 2, 4]
        for _, config in commands:
            assert config.model.quantization == quantization
            assert (config.lora.rank, config.lora.target_modules) == (8, ["all-linear"])
            assert named(config) == named(readme)


def named(config: Config) -> dict[str, object]:
    """What the README sets for Llama-2-7B, besides model, rows and epochs."""
    settings = config.training
    chosen = settings.model_dump(
        include={"learning_rate", "max_length", "activation_checkpointing"}
    )
    return chosen | {"update": settings.batch_size * settings.gradient_accumulation_steps}


def asked(gpu, monkeypatch, part, folder: Path) -> list[tuple[int, Config]]:
    """(bytes held, settings) of each process that a part would start; none is started."""
    found = []

    def measure(command: Sequence[object], **_: object):
        _, _, kind, script, cap, *words = map(str, command)
        assert kind == "script"
        found.append((int(cap), read(script, "", words)[0]))
        return gpu.Cost(wall=0, cpu=0, peak=0, returncode=4, output="CUDA out of memory")

    monkeypatch.setattr(gpu, "measure", measure)
    world = gpu.World(folder, gpu.SIZES["7b"], gpu.CARD, threads=1)
    assert part(world).failures == len(found)
    return found


def test_a_part_that_is_not_there_is_refused(gpu, capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        gpu.main(["--small", "--parts", "qlora,quantum"])
    assert refused.value.code == 2
    assert "no part quantum: there are qlora, lora, trainer" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_measured_at_the_real_shape(gpu, tmp_path) -> None:
    with pytest.raises(SystemExit, match="no GPU here.*--small"):
        gpu.main(["--folder", str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()
