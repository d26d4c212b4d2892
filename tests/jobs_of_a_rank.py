"""One process of `accelerate launch`: does several jobs one after another, as one start of it.

    accelerate launch ... tests/jobs_of_a_rank.py FOLDER
    fork(FOLDER, rank, environment)                         # or a fork of a test's own process

FOLDER/jobs.json lists the command lines, each a Python file and its words. What job 0 says in the
process of rank 1 is in FOLDER/0.1.out and FOLDER/0.1.err. Importing torch and transformers takes
four seconds of each process, and most jobs here take one.
"""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def do(job: list[str], said: Path) -> None:
    """Run one Python file; its output goes into `said`.out and `said`.err."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, kind in ((1, "out"), (2, "err")):
        with said.with_name(f"{said.name}.{kind}").open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")  # all but the first rank close theirs
    sys.argv = job
    try:
        runpy.run_path(job[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.stdout.flush()


def do_all(folder: Path) -> None:
    for number, job in enumerate(json.loads((folder / "jobs.json").read_text(encoding="utf-8"))):
        do(job, folder / f"{number}.{os.environ['RANK']}")


def fork(folder: Path, rank: int, environment: Mapping[str, str]) -> int:
    """The id of a fork of this process that does the jobs as `rank`; it notes FOLDER/failed."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        from accelerate.state import AcceleratorState, GradientState
        from running import settle_torch

        settle_torch()
        AcceleratorState._reset_state(reset_partial_state=True)  # it believes to be alone
        GradientState._reset_state()
        do_all(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
        (folder / "failed").touch()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    sys.path[:0] = [str(ROOT / "finetune"), str(ROOT / "tests")]
    do_all(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
