"""quickstart.py: each step once, what was stopped goes on, and what differs on Windows."""

import importlib.util
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from slimtune.config import SCRIPTS
from slimtune.settings import read_settings

FILE = Path(__file__).resolve().parents[1] / "quickstart.py"
STEPS = 10


@pytest.fixture
def quickstart(tmp_path, monkeypatch) -> ModuleType:
    """The script in an empty folder, where installing does nothing."""
    spec = importlib.util.spec_from_file_location("quickstart", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(module, "install", lambda: None)
    monkeypatch.setattr(sys, "argv", ["quickstart.py"])
    monkeypatch.chdir(tmp_path)
    return module


@pytest.fixture
def play(quickstart, monkeypatch) -> Callable[..., list[list[str]]]:
    """Runs it; the commands. Each leaves its result, but number `stop`, which exits with `code`."""
    step = quickstart.step

    def played(stop: int = 0, code: int = 130) -> list[list[str]]:
        commands: list[list[str]] = []
        due: list[str] = []

        def noted(result: str, *rest: str) -> None:
            due.append(result)
            step(result, *rest)

        def ended(words: list[str]) -> int:
            commands.append(words[1:])
            if len(commands) == stop:
                return code
            Path(due[-1]).parent.mkdir(parents=True, exist_ok=True)
            Path(due[-1]).touch()
            return 0

        monkeypatch.setattr(quickstart, "step", noted)
        monkeypatch.setattr(quickstart, "ended", ended)
        if stop:
            with pytest.raises(SystemExit) as end:
                quickstart.main()
            assert end.value.code == code
        else:
            quickstart.main()
        return commands

    return played


def test_every_script_once_in_order_and_nothing_twice(play, capsys) -> None:
    commands = play()
    assert len(commands) == STEPS
    assert {Path(script).stem for script, *_ in commands} == set(SCRIPTS)
    assert not any("--resume" in words or "--overwrite" in words for words in commands)
    shown = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line)[1:] for line in shown] == commands
    assert play() == []
    assert capsys.readouterr().out.count("exists: ") == STEPS


def test_overwrite_makes_everything_again(play, monkeypatch) -> None:
    play()
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--overwrite"])
    assert [words[-1] for words in play()] == ["--overwrite"] * STEPS


@pytest.mark.parametrize(
    ("script", "left"),
    [
        ("train_lora", "models/finetuned/checkpoints/conditions.json"),
        ("knowledge_distillation", "models/distilled_checkpoints/conditions.json"),
        ("train_pruned_distilled", "models/pruned_distilled/pruned"),
    ],
)
def test_what_was_stopped_goes_on(script, left, play) -> None:
    first = play()
    number = [Path(words[0]).stem for words in first].index(script) + 1
    for folder in ("data", "models"):
        shutil.rmtree(folder)
    stopped = play(stop=number)[-1]
    assert play(stop=1)[0] == stopped
    Path(left).mkdir(parents=True)
    assert play()[0] == [*stopped, "--resume"]
    arguments = [*stopped[1:], "--resume"]
    config, _ = read_settings(script, "", arguments)
    assert config.options.resume


def test_a_run_that_only_had_its_files_to_name_is_no_failure(play, monkeypatch, quickstart) -> None:
    """The script says "exists already", exit 2, after it has finished what was stopped."""
    play(stop=2, code=2)
    commands = []

    def named(words: list[str]) -> int:
        commands.append(words)
        Path("data/finetune").mkdir(parents=True, exist_ok=True)
        Path("data/finetune/train_run.json").touch()
        return 2 if len(commands) == 1 else 3

    monkeypatch.setattr(quickstart, "ended", named)
    with pytest.raises(SystemExit) as end:
        quickstart.main()
    assert end.value.code == 3 and "train_lora.py" in commands[1][1]


def test_on_windows_no_command_asks_llama_cpp(play, quickstart, monkeypatch, capsys) -> None:
    monkeypatch.setattr(quickstart, "WINDOWS", True)
    converts, compares = play()[-2:]
    assert "Q8_0" in converts and converts[-2:] == ["--verify", "off"]
    assert ".gguf" not in compares[-1] and "pruned_distilled/final" in compares[-1]
    said = capsys.readouterr().out
    assert "--interactive --models models/finetuned/merged_model\n" in said
    assert "Q4_K_M" not in said


def test_installing_once_and_when_the_list_has_changed(quickstart, tmp_path, monkeypatch) -> None:
    fresh = importlib.util.spec_from_file_location("fresh", FILE)
    module = importlib.util.module_from_spec(fresh)
    fresh.loader.exec_module(module)
    made, installed = [], []

    def create(folder: Path, with_pip: bool) -> None:
        made.append(with_pip)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").touch()

    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(module.venv, "create", create)
    monkeypatch.setattr(module, "ended", lambda words: installed.append(words) or 0)
    for text in ("torch==1\n", "torch==1\n", "torch==2\n"):
        (tmp_path / "requirements.txt").write_text(text)
        module.install()
    assert made == [True] and len(installed) == 2
    monkeypatch.setattr(module, "ended", lambda words: 1)
    (tmp_path / "requirements.txt").write_text("none==3\n")
    with pytest.raises(SystemExit):
        module.install()
    assert (tmp_path / ".venv/installed.txt").read_text() == "torch==2\n"


def test_a_wrong_word_is_refused_before_anything(quickstart, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--overwite"])
    with pytest.raises(SystemExit) as end:
        quickstart.main()
    assert end.value.code == 2 and "usage" in capsys.readouterr().err


SLOW_TO_STOP = """
import signal, sys, time
def stop(*_):
    time.sleep(0.5)  # a checkpoint is written
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("at work", flush=True)
time.sleep(600)
"""


@pytest.mark.usefixtures("signals_as_in_a_terminal")
def test_ctrl_c_lets_a_script_save_what_it_has() -> None:
    start = f"import sys; sys.path.insert(0, {str(FILE.parent)!r}); import quickstart; "
    start += f"sys.exit(quickstart.ended([sys.executable, '-c', {SLOW_TO_STOP!r}]))"
    command = [sys.executable, "-c", start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        for one in (*psutil.Process(process.pid).children(), process):
            one.send_signal(signal.SIGINT)  # a terminal sends it to both
        assert process.stdout.read() == "saved\n"
        assert process.wait() == 130
