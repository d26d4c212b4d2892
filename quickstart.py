"""From nothing to a small fine-tuned Llama as GGUF, on the embedded example. It is the tutorial.

    python quickstart.py               a second run goes on where something is missing
    python quickstart.py --overwrite   makes everything again

`bash quickstart.sh` does the same with the newest Python that fits, which is 3.11 or later. On
Windows there is no llama.cpp to ask: the file is a Q8_0 there, unproven, and for Ollama to run.
"""

import filecmp
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
WINDOWS = os.name == "nt"
PYTHON = ROOT / ".venv" / ("Scripts/python.exe" if WINDOWS else "bin/python")
OVERWRITE = ["--overwrite"]
SETTINGS = 2  # the scripts' exit code for what is finished already, among others


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever starts it may have an older one
        sys.exit(f"error: Python 3.11 or later is needed, and this is {sys.version.split()[0]}")
    if sys.argv[1:] not in ([], OVERWRITE):
        print("usage: python quickstart.py [--overwrite]", file=sys.stderr)
        sys.exit(SETTINGS)
    os.chdir(ROOT)
    install()
    started = time.monotonic()
    gguf = on_this_system("models/gguf/slimtune-sample-Q4_K_M.gguf")

    # 1. The example: rows with answers that a program can check, and two small Llamas.
    step("models/sample/run.json", "python finetune/create_sample_data.py")

    # 2. Raw rows -> train, validation, test; no fact of the test is ever asked in training.
    command = """python finetune/prepare_data.py \
        --input data/raw_data.json --input-format json --format-type alpaca \
        --output-dir data/finetune --output-name train"""
    step("data/finetune/train_run.json", command)

    # 3. Fine-tune the base model, and see what it gained.
    command = "python finetune/train_lora.py"
    step(
        "models/finetuned/lora_adapter/run.json",
        command,
        "models/finetuned/checkpoints/conditions.json",
    )
    command = """python finetune/evaluate_model.py \
        --output models/evaluation/fine-tuned/evaluation_results.csv"""
    step("models/evaluation/fine-tuned/evaluation_results.csv", command)
    step("models/finetuned/merged_model/run.json", "python finetune/evaluate_model.py --merge")

    # 4. Make it smaller, and let the teacher win back what that cost.
    step("models/pruned/run.json", "python finetune/model_pruning.py")
    command = "python finetune/knowledge_distillation.py"
    step("models/distilled/run.json", command, "models/distilled_checkpoints/conditions.json")

    # 5. Or all three in one run, from the base model on; its comparison, too, is in step 7.
    command = """python finetune/train_pruned_distilled.py \
        --stages prune,cache,distil,lora,merge"""
    step("models/pruned_distilled/final/run.json", command, "models/pruned_distilled/pruned")

    # 6. One file for llama.cpp and Ollama, and the Modelfile that Ollama reads it by.
    command = """python finetune/convert_to_gguf.py \
        --model-path models/finetuned/merged_model --quantization Q4_K_M --create-modelfile"""
    step(gguf, on_this_system(command) + (" --verify off" if WINDOWS else ""))

    # 7. Everything side by side.
    models = "models/finetuned/merged_model,models/pruned,models/distilled"
    models += ",models/pruned_distilled/final" + ("" if WINDOWS else f",{gguf}")
    command = f"python finetune/evaluate_model.py --models {models}"
    step("models/evaluation/evaluation_results.csv", command)

    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    python = PYTHON.relative_to(ROOT)
    print(f"\ndone in {minutes} min {seconds} s; the report: models/evaluation/report.html")
    print("\nto talk to what was made, in Ollama or here:")
    print("  ollama create slimtune-sample -f Modelfile\n  ollama run slimtune-sample")
    talk = "finetune/evaluate_model.py --interactive --models"
    print(f"  {python} {talk} {models.split(',')[0] if WINDOWS else gguf}")


def on_this_system(text: str) -> str:
    """K-quants are encoded by llama.cpp's own code, which the wheel for Windows keeps to itself."""
    return text.replace("Q4_K_M", "Q8_0") if WINDOWS else text


def install() -> None:
    """The packages, into .venv: once, and again when requirements.txt has changed."""
    wanted, installed = ROOT / "requirements.txt", ROOT / ".venv/installed.txt"
    if not PYTHON.is_file():
        print(f"making .venv with {sys.executable}", flush=True)
        venv.create(ROOT / ".venv", with_pip=True)
    if not (installed.is_file() and filecmp.cmp(wanted, installed, shallow=False)):
        print("installing requirements.txt into .venv", flush=True)
        code = ended([str(PYTHON), "-m", "pip", "install", "-q", "-r", str(wanted)])
        if code:
            sys.exit(code)
        shutil.copyfile(wanted, installed)


def step(result: str, command: str, stopped: str = "") -> None:
    """Show a command and run it, unless its result is there; `stopped` is what a run leaves that
    was stopped with something to go on from.

    Ends with the exit code of a command that fails.
    """
    words = shlex.split(command)
    again = sys.argv[1:] == OVERWRITE
    if Path(result).exists() and not again:
        print(f"\nexists: {result} (--overwrite makes it again)", flush=True)
        return
    words += OVERWRITE if again else ["--resume"] if stopped and Path(stopped).exists() else []
    print("\n$", *words, flush=True)
    code = ended([str(PYTHON), *words[1:]])
    # A run that was killed as it gave its files their names has nothing to do but to finish that.
    if code and not (code == SETTINGS and Path(result).exists() and not again):
        sys.exit(code)


def ended(words: list[str]) -> int:
    """The exit code of a program; Ctrl-C is the program's own, which saves what it has first."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.SIG_IGN:  # which the program would begin with; a function it does not
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.call(words)
    finally:
        signal.signal(signal.SIGINT, usual)


if __name__ == "__main__":
    main()
