"""Jobs under `accelerate launch` with two processes on CPUs, as users start them and as forks."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jobs_of_a_rank
import psutil
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS, JOBS = ROOT / "finetune", ROOT / "tests" / "jobs_of_a_rank.py"
LAUNCH = SCRIPTS / "launch"


def write_jobs(folder: Path, jobs: Sequence[list[object]]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [[str(word) for word in job] for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(lines), encoding="utf-8")


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile: a bound socket that does not listen holds it, and
    the ranks' store may bind it beside that, since both of them allow reuse.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def launched(launch: str, *jobs: list[object], folder: Path) -> None:
    """Jobs under one `accelerate launch` with two processes on CPUs, through gloo, as users start
    them; `said` tells what each of them had to say.
    """
    write_jobs(folder, jobs)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [LAUNCH / f"{launch}.yaml", "--main_process_port"]
    with free_port() as port, (folder / "launch.err").open("w") as words:
        process = subprocess.Popen([*command, str(port), JOBS, folder], stdout=words, stderr=words)
        try:
            code = process.wait(timeout=600)
        except BaseException:
            for rank in psutil.Process(process.pid).children(recursive=True):
                rank.kill()
            process.wait()
            raise
    assert code == 0, everything_said(folder)


def forked(launch: str, *jobs: list[object], folder: Path, killed: bool = False) -> None:
    """The same from two forks of this process: the launcher's and the processes' own imports of
    torch and transformers take twenty seconds. With `killed` the first must end by `kill -9`, and
    the other is ended then, as the launcher does it.
    """
    write_jobs(folder, jobs)
    with free_port() as port:
        environment = environment_of(launch, port)
        ranks = [jobs_of_a_rank.fork(folder, rank, environment) for rank in (0, 1)]
        try:
            first = os.waitstatus_to_exitcode(os.waitpid(ranks.pop(0), 0)[1])
            assert first == (-signal.SIGKILL if killed else 0), everything_said(folder)
        except BaseException:
            killed = True
            raise
        finally:
            for rank in ranks:
                if killed:
                    os.kill(rank, signal.SIGKILL)
                os.waitpid(rank, 0)
    assert killed or not (folder / "failed").exists(), everything_said(folder)


def environment_of(launch: str, port: int) -> dict[str, str]:
    """What `accelerate launch` and torchrun tell two processes, without their ranks."""
    file = str(LAUNCH / f"{launch}.yaml")
    words = ["--config_file", file, "--main_process_port", str(port), str(JOBS)]
    arguments = launch_command_parser().parse_args(words)
    told = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return told | world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def everything_said(folder: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.err")))
