"""The model card: README.md in the folder of an adapter or model, for whoever finds it later."""

import json
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import write_page
from slimtune.config import Config
from slimtune.console import decoration, near

_ADAPTER = """\
---
base_model: {base}
{origin}library_name: peft
license: other
tags: [lora, slimtune]
---

# LoRA adapter for {base}

## Load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")  # with the chat template of training
```
"""

_MODEL = """\
---
base_model: {base}
library_name: transformers
license: other
tags: [slimtune]
---

# {base}, {how}

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")  # with the chat template of training
```
"""

_REST = """
## Figures

{figures}

Losses are nats per supervised token; the curve is loss.png, every logged step in metrics.jsonl.

## Data

{data}

## Settings

{settings}

## Licence

What is made from a base is bound by the base's licence and by that of the rows it has learned from.
Say both before you pass it on.
"""


def write_model_card(
    folder: Path,
    base: str,
    config: Config,
    figures: dict[str, Any],
    dataset: dict[str, Any],
    *,
    kind: str = "adapter",
    fingerprint: str | None = None,
) -> None:
    """README.md: how to load, figures, data, settings, licence; replaces the empty one of peft.

    `kind` is adapter, whole (all weights were trained) or distilled; `figures` are what the run
    measured, `dataset` what it learned from, `fingerprint` tells an adapter's base from others.
    """
    settings = config.model_dump(mode="json")
    teacher = near(config.distillation.teacher_model)
    how = f"taught by {teacher}" if kind == "distilled" else "all weights fine-tuned"
    method = "distillation" if kind == "distilled" else "lora"
    chosen = {
        f"{section}.{name}": value
        for section in (method, "training")
        for name, value in settings[section].items()
    }
    data = {"rows": near(config.training.train_data)} | dataset | _report(config)
    text = ((_ADAPTER if kind == "adapter" else _MODEL) + _REST).format(
        base=near(base),
        origin=f"base_fingerprint: {fingerprint}\n" if fingerprint else "",
        how=how,
        figures=_table("figure", figures),
        data=_table("data", data),
        settings=_table("setting", chosen),
    )
    write_page(folder / "README.md", text)


def _report(config: Config) -> dict[str, Any]:
    """The counts of the data report beside the rows, where there is one."""
    file = config.training.train_data.with_name("data_report.json")
    if not file.is_file():
        return {}
    with decoration(f"{near(file)} in the model card"):
        report = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise ValueError("it is no report: not an object of counts")
        counts = {name: value for name, value in report.items() if isinstance(value, (int, float))}
        return {f"data report, {name}": value for name, value in counts.items()}
    return {}


def _table(head: str, values: dict[str, Any]) -> str:
    lines = [f"| `{name}` | {value} |" for name, value in values.items()]
    return "\n".join([f"| {head} | value |", "|---|---|", *lines])
