"""The tail of every script: read the settings, run `main`, exit with what happened."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from slimtune.config import Config
from slimtune.config.fields import ELSEWHERE
from slimtune.console import first_process, note, start_logging, tell_error
from slimtune.errors import ExitCode, SlimTuneError
from slimtune.machine.process import leave_out_unused
from slimtune.machine.ranks import watch_ranks
from slimtune.machine.refusals import is_panic, refusal_of
from slimtune.machine.tricks import tricks_off
from slimtune.masking import masked
from slimtune.packages import NEEDED, left_out, require_packages
from slimtune.settings import model_references, paths_read, read_settings
from slimtune.settings.flags import less_memory

# Before any Hugging Face import: no progress bars of theirs, no prompts, no thread warnings.
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    # oneDNN keeps 1,024 products that it made ready, for each number of tokens others, and hardly
    # two batches have as many: 100 MB after 24 steps of SmolLM2 in bfloat16, for no time saved. A
    # step makes about 24 of them. It reads this when torch is imported.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}


def run(main: Callable[[Config], None], doc: str) -> None:
    """Run a script's `main` with its settings and exit with 0 or the code of its error."""
    start_logging()
    watch_ranks()
    if not first_process():  # what all of them would say is said once
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        logging.getLogger("slimtune").setLevel(logging.ERROR)
    # Deprecations inside transformers and peft are ours to act on, not the user's.
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    code = _run(main, doc, sys.argv[1:])
    _give_up(sys.stdout)
    _give_up(sys.stderr)
    sys.exit(code)


def _give_up(stream: TextIO) -> None:
    """What can no longer be written goes nowhere: Python would end with 120 over it."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(main: Callable[[Config], None], doc: str, arguments: list[str]) -> int:
    script = Path(main.__code__.co_filename).stem
    read: list[Path] = []
    try:
        config, print_only = read_settings(script, doc, arguments)
        if print_only:
            from slimtune.settings.written import config_yaml

            print(masked(config_yaml(config, script=script)), end="")
        else:
            tricks_off()  # a name it does not know is refused before any work
            read = paths_read(config, script)
            require_packages(NEEDED[script])
            for sentence in left_out(script):
                note(f"caution: {sentence}")
            leave_out_unused(config)
            ready = _with_model_folders(config, script)
            if ready is not None:
                main(ready)
        sys.stdout.flush()  # what it cannot take is told here, not by Python after the end
        return ExitCode.OK
    except KeyboardInterrupt as stopped:
        note("\n" + ": ".join(["interrupted", *map(str, stopped.args)]))
        return ExitCode.INTERRUPTED
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        if "--debug" in arguments:
            note(traceback.format_exc().rstrip())
        known = refusal_of(error, read, less_memory()) or _bug(error)
        return tell_error(known)


def _with_model_folders(config: Config, script: str) -> Config | None:
    """Every script takes a GGUF file for a model; what unpacks it is imported only then."""
    if not any(map(_needs_a_look, model_references(config, script).values())):
        return config
    from slimtune.unpacking.references import with_folders

    return with_folders(config, script)


def _needs_a_look(reference: str) -> bool:
    return reference.startswith(ELSEWHERE) or ".gguf" in reference or os.path.isfile(reference)


def _bug(error: BaseException) -> SlimTuneError:
    return SlimTuneError(
        f"unexpected {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        "this is a bug of SlimTune, not of yours",
        "run it again with --debug and report the traceback",
    )
