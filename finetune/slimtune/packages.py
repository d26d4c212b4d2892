"""Packages: which are needed, which only add something, and the one line that installs them.

requirements.txt is the list of names and versions; here stands what is called otherwise in an
`import`, and what is lost without a package that a script can do without.
"""

import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from slimtune.console import near
from slimtune.errors import ResourceError

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
# Without these no script knows its settings.
GROUND = ("pydantic", "yaml", "psutil", "filelock")
# What a script imports only when the work is under way, or after it.
_MODELS = ("numpy", "torch", "transformers", "safetensors", "tokenizers", "jinja2", "sentencepiece")
_TRAINING = (*_MODELS, "accelerate", "rich")
NEEDED: dict[str, tuple[str, ...]] = {
    "create_sample_data": (),
    "prepare_data": ("numpy", "charset_normalizer"),
    "model_pruning": (*_MODELS, "rich"),
    "knowledge_distillation": _TRAINING,
    "train_lora": (*_TRAINING, "peft"),
    "train_pruned_distilled": (*_TRAINING, "peft", "markdown_it"),
    "evaluate_model": (*_MODELS, "rich", "markdown_it"),
    "convert_to_gguf": (*_MODELS, "gguf"),
}
# Package -> what is left out where it is missing, and the scripts that would have it.
_PICTURES = ("matplotlib", "pictures")
_MEASURES = ("sacrebleu", "BLEU and chrF")
WITHOUT: dict[str, tuple[tuple[str, str], ...]] = {
    "prepare_data": (_PICTURES, ("rensa", "the search for similar rows")),
    "knowledge_distillation": (_PICTURES,),
    "train_lora": (_PICTURES,),
    "train_pruned_distilled": (_PICTURES, _MEASURES),
    "evaluate_model": (_MEASURES,),
}
# Where pip and `import` do not call it the same.
_OF_PIP = {
    "yaml": "pyyaml",
    "charset_normalizer": "charset-normalizer",
    "markdown_it": "markdown-it-py",
    "google": "protobuf",
}


def is_installed(module: str) -> bool:
    """Whether it could be imported; nothing is."""
    return find_spec(module) is not None


def pip_line(*modules: str) -> str:
    """What installs these, as requirements.txt pins them; without any, all that is in it."""
    if not modules:
        return f"{_python()} -m pip install -r {near(REQUIREMENTS)}"
    text = REQUIREMENTS.read_text(encoding="utf-8") if REQUIREMENTS.is_file() else ""
    names = [_OF_PIP.get(module, module) for module in modules]
    pinned = [re.search(rf"(?<![\w-]){re.escape(name)}==[\w.]+", text) for name in names]
    words = [found[0] if found else name for found, name in zip(pinned, names, strict=True)]
    return f"{_python()} -m pip install {' '.join(words)}"


def require_packages(modules: Iterable[str]) -> None:
    """ResourceError that names every missing package and how to install it."""
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        raise _missing(*missing)


def left_out(script: str) -> list[str]:
    """A sentence for each thing that a script does without, for want of a package."""
    return [
        f"{what} left out: {module} is not installed ({pip_line(module)})"
        for module, what in WITHOUT.get(script, ())
        if not is_installed(module)
    ]


def not_loadable(error: ImportError) -> ResourceError | None:
    """What to say where an import failed: the package is missing, or does not fit the system.

    None for a module of ours: that is a bug.
    """
    module = (error.name or "").partition(".")[0]
    if module == "slimtune":
        return None
    if module and isinstance(error, ModuleNotFoundError):
        return _missing(module)
    return ResourceError(
        f"{module or 'a package'}: installed, and cannot be loaded",
        str(error).splitlines()[0] if str(error) else type(error).__name__,
        f"install it again: {pip_line()}",
    )


def _missing(*modules: str) -> ResourceError:
    names = ", ".join(_OF_PIP.get(module, module) for module in modules)
    return ResourceError(
        f"{names}: not installed",
        f"this script needs it, and {near(sys.executable)} has no package of that name",
        f"{pip_line()}   (or this alone: {pip_line(*modules)})",
    )


def _python() -> str:
    return near(sys.executable) if sys.executable else "python"
