"""Of processes that train together one is killed: another says so, and what to do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FINETUNE = Path(__file__).resolve().parents[2] / "finetune"

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix", reason="signals as Unix has them"),
]

# Waits in C, where no handler of Python's runs, as a rank does for what another is to send. Who has
# looked which ranks are left goes on when all who were told have looked, not a second later: on a
# busy machine a second may be too short.
WAITING = """
import ctypes, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from slimtune.machine import ranks

def together():
    found = look()
    folder, told = Path(sys.argv[3]), int(sys.argv[4])
    (folder / os.environ["RANK"]).touch()
    while len(list(folder.iterdir())) < told:
        time.sleep(0.01)
    return found

look, ranks._here_and_gone = ranks._here_and_gone, together
ranks._STAY = 0
ranks.watch_ranks()
print("ready", flush=True)
if sys.argv[2] == "in C":
    while True:  # a signal interrupts a pause, and gloo waits on
        ctypes.PyDLL(None).sleep(600)
time.sleep(600)
"""
# As torch's launcher: it sees that one has ended, and ends the others.
LAUNCHER = """
import os, signal, subprocess, sys
finetune, waiting, where, folder, kill, ranks = sys.argv[1:]
told_to_end = str(int(ranks) - (kill != "none"))
started = []
for rank in range(int(ranks)):
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    told |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    command = [sys.executable, "-c", waiting, finetune, where, folder, told_to_end]
    started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | told))
for process in started:
    process.stdout.readline()
if kill != "none":
    started[int(kill)].kill()
    started[int(kill)].wait()
for process in started:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
print([process.wait() for process in started])
"""


def launched(where: str, kill: str, folder: Path, ranks: int = 3) -> tuple[list[int], str]:
    """The exit codes of the ranks, and what they said."""
    words = [str(FINETUNE), WAITING, where, str(folder), kill, str(ranks)]
    command = [sys.executable, "-c", LAUNCHER, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return list(map(int, done.stdout.strip("[]\n").split(", "))), done.stderr


@pytest.mark.parametrize("where", ["in C", "in Python"])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_that_is_left_says_which_has_ended(rank, where, tmp_path) -> None:
    codes, said = launched(where, str(rank), tmp_path)
    assert said.count("error: ") == 1
    assert f"of 3 processes that train together rank {rank} has ended\n" in said
    assert "memory" in said and "--resume" in said and "Traceback" not in said
    assert codes == [-signal.SIGKILL if one == rank else 4 for one in range(3)]


def test_where_all_are_told_to_end_nobody_is_missed(tmp_path) -> None:
    codes, said = launched("in Python", "none", tmp_path, ranks=2)
    assert said == "" and codes == [128 + signal.SIGTERM] * 2
