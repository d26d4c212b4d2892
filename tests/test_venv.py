"""venv.sh: the newest Python that fits makes the environment, and says so; what is unfit goes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "venv.sh"
TOOLS = ("bash", "cat", "ls", "mkdir", "cp", "rm")
# Answers as a Python of this version would: to --version, to what venv.sh asks, to -m venv and pip.
FAKE = """#!/bin/bash
case "$*" in
  --version) echo "Python {version}" ;;
  *version_info*) exit {unfit} ;;
  *ensurepip*) exit {bare} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo made > "$3/pyvenv.cfg" ;;
  *) exit 0 ;;
esac
"""
SHIM = "#!/bin/bash\necho 'pyenv: command not found' >&2\nexit 127\n"


@pytest.fixture
def machine(tmp_path) -> Path:
    """A folder with the tools that venv.sh calls; the only one on PATH."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


def fake(version: str, *, bare: bool = False) -> str:
    unfit = int(version.split(".")[1]) < 11
    return FAKE.format(version=version, unfit=int(unfit), bare=int(bare))


def made(machine: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": str(machine / "bin")}
    command = [shutil.which("bash"), SCRIPT, ".venv"]
    return subprocess.run(command, cwd=machine, env=environment, capture_output=True, text=True)


def version_in(machine: Path) -> str:
    command = [machine / ".venv/bin/python", "--version"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("pythons", "wanted"),
    [
        ({"python3": "3.10.12", "python3.11": "3.11.9"}, "3.11.9"),
        ({"python3": "3.11.2", "python3.12": "3.12.1"}, "3.12.1"),
        ({"python3.12": "3.12.1", "python3.13": "3.13.0"}, "3.13.0"),
        ({"python3": "3.14.0"}, "3.14.0"),
    ],
)
def test_the_newest_that_fits_is_taken_and_named(pythons, wanted, machine) -> None:
    for name, version in pythons.items():
        put(machine / "bin" / name, fake(version))
    ran = made(machine)
    assert ran.returncode == 0 and version_in(machine) == f"Python {wanted}"
    assert f"(Python {wanted})" in ran.stdout and ran.stdout.count("\n") == 1
    assert made(machine).stdout == ""  # what is whole stays


def test_one_that_runs_nothing_or_has_no_pip_is_passed_over(machine) -> None:
    put(machine / "bin/python3.13", SHIM)
    put(machine / "bin/python3.12", fake("3.12.1", bare=True))
    put(machine / "bin/python3", fake("3.11.2"))
    assert made(machine).returncode == 0 and version_in(machine) == "Python 3.11.2"


def test_an_older_one_alone_is_refused_in_a_few_lines(machine) -> None:
    put(machine / "bin/python3", fake("3.10.12"))
    ran = made(machine)
    assert ran.returncode == 4 and not (machine / ".venv").exists()
    assert "python3 is Python 3.10.12" in ran.stderr and "python3.11-venv" in ran.stderr
    assert len(ran.stderr) < 400


@pytest.mark.parametrize("there", ["older", "half"])
def test_an_unfit_environment_is_made_anew(there, machine) -> None:
    if there == "older":
        put(machine / ".venv/bin/python", fake("3.10.12"))
    put(machine / ".venv/pyvenv.cfg", "home = /usr/bin")
    put(machine / ".venv/installed.txt", "what the older one had")
    put(machine / "bin/python3.12", fake("3.12.1"))
    ran = made(machine)
    assert ran.returncode == 0 and "made anew" in ran.stdout
    assert version_in(machine) == "Python 3.12.1"
    assert not (machine / ".venv/installed.txt").exists()


def test_a_folder_of_somebody_elses_stays(machine) -> None:
    put(machine / ".venv/thesis.txt", "years of work")
    put(machine / "bin/python3.12", fake("3.12.1"))
    ran = made(machine)
    assert ran.returncode == 2 and "might be yours" in ran.stderr
    assert (machine / ".venv/thesis.txt").read_text() == "years of work"
