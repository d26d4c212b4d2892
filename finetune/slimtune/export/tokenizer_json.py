"""tokenizer.json without its vocabulary: the few lines of settings before the megabytes of tokens.

Parsed whole, the file of Llama-2 takes 40 MB of Python objects, a third of what a conversion may.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*\{')
_HEAD_BYTES = 1 << 20
_BESIDE = ("config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
_TEMPLATES = "additional_chat_templates"


def read_head(file: Path) -> dict:
    """All of a tokenizer.json but "model", {} where there is no file.

    The library tokenizers writes "model" last, so that what stands before it is read alone; another
    order costs the whole file.
    """
    if not file.is_file():
        return {}
    with file.open("rb") as stream:
        start = stream.read(_HEAD_BYTES)
    found = _MODEL.search(start)
    if found:
        try:
            head = json.loads(start[: found.start()].rstrip().rstrip(b",") + b"}")
        except ValueError:
            head = {}
        if {"added_tokens", "post_processor"} <= head.keys():
            return head
    whole = json.loads(file.read_text(encoding="utf-8"))
    whole.pop("model", None)
    return whole


@contextmanager
def without_vocabulary(folder: Path) -> Iterator[Path]:
    """A temporary copy of a model folder's tokenizer settings, as gguf-py reads them."""
    with TemporaryDirectory() as temporary:
        slim = Path(temporary)
        for name in _BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, slim / name)
        if (folder / _TEMPLATES).is_dir():
            shutil.copytree(folder / _TEMPLATES, slim / _TEMPLATES)
        if (folder / "tokenizer.json").is_file():
            head = json.dumps(read_head(folder / "tokenizer.json"))
            (slim / "tokenizer.json").write_text(head, encoding="utf-8")
        yield slim
