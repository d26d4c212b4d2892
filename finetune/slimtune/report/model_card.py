"""The model card: README.md in the folder of an adapter or model, for whoever finds it later.

It goes wherever the folder goes: figures are rounded, and no folder of this machine is named.
"""

import json
import re
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import write_page
from slimtune.artifacts.reading import CARD
from slimtune.config import Config
from slimtune.console import decoration, near
from slimtune.report.results_on_cards import place_of

_HEAD = """\
---
{head}
---

"""
_ADAPTER = """\
# LoRA adapter for {base}

## Load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{loaded}"), "THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")  # with the chat template of training
```
"""

_MODEL = """\
# {base}, {how}

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")  # with the chat template of training
```
"""

_FIGURES = """
Ask it by that template: `tokenizer.apply_chat_template(messages, add_generation_prompt=True)`.

## Figures

{figures}
"""
_TRAINING = """
Losses are nats per supervised token{measured}; every logged step is in metrics.jsonl.
{picture}
These are figures of the training. What the model answers to rows that it has not seen is what
`evaluate_model.py` measures, base and fine-tuned side by side.
{place}
## Data

{data}

## Settings

{settings}
"""
_LICENCE_OF_BASE = """
## Licence

What is made from a base is bound by the base's licence ({licence}) and by that of the rows it has
learned from. Say both before you pass it on.
"""
_PICTURE = """
![The loss while training](loss.png)
"""
_ON_VALIDATION = ", perplexity is that of the validation rows before and after training"
# What the head of a card of the Hub says of its licence.
_LICENCE = re.compile(r"^(license(?:_name|_link)?): *[\"']?([\w.:/-]+)[\"']?\s*$", re.MULTILINE)
_LONGEST_HEAD = 1 << 16  # characters of a base's card that are looked at
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def write_model_card(
    folder: Path,
    base: str,
    config: Config,
    figures: dict[str, Any],
    dataset: dict[str, Any],
    *,
    kind: str = "adapter",
    fingerprint: str | None = None,
    base_folder: Path | None = None,
) -> None:
    """README.md: how to load, figures, data, settings, licence; replaces the empty one of peft.

    `kind` is adapter, whole (all weights were trained) or distilled; `figures` are what the run
    measured, `dataset` what it learned from, `fingerprint` tells an adapter's base from others,
    `base_folder` has the base's own card, from which the licence comes.
    """
    teacher = name_of(config.distillation.teacher_model)
    method = "distillation" if kind == "distilled" else "lora"
    chosen = {
        f"{section}.{name}": value
        for section in (method, "training")
        for name, value in getattr(config, section)
    }
    licence = licence_of(base_folder) if base_folder else {}
    data = {"rows": config.training.train_data} | dataset | _report(config)
    opening = _HEAD + (_ADAPTER if kind == "adapter" else _MODEL)
    text = (opening + _FIGURES + _TRAINING + _LICENCE_OF_BASE).format(
        head=_head(base, kind, licence, fingerprint),
        base=name_of(base),
        loaded=base if _HUB_ID.fullmatch(base) else f"THE FOLDER OF {name_of(base)}",
        how=f"taught by {teacher}" if kind == "distilled" else "all weights fine-tuned",
        figures=_table("figure", figures),
        measured=_ON_VALIDATION if "perplexity_after" in figures else "",
        picture=_PICTURE if (folder / "loss.png").is_file() else "",
        data=_table("data", data),
        settings=_table("setting", chosen),
        place=place_of(""),
        licence=_licencename_of(licence),
    )
    write_page(folder / CARD, text)


def write_derived_card(
    folder: Path,
    base: str,
    how: str,
    figures: dict[str, Any],
    *,
    base_folder: Path,
    measured: str = "",
    tested: str = "",
) -> None:
    """The card of a model that was made from another without training, in place of the other's own.

    `how` says what was done ("pruned"), `measured` how the figures came about, `tested` is the
    section of a test that counts for it, in Markdown. Without a card where one fails: nobody's
    model shall go by the words of another's.
    """
    with decoration("the model card"):
        licence = licence_of(base_folder)
        text = (_HEAD + _MODEL + _FIGURES + "{measured}{place}" + _LICENCE_OF_BASE).format(
            head=_head(base, "model", licence, None),
            base=name_of(base),
            how=how,
            figures=_table("figure", figures),
            measured=measured,
            place=place_of(tested),
            licence=_licencename_of(licence),
        )
        write_page(folder / CARD, text)


def _licencename_of(licence: dict[str, str]) -> str:
    return licence.get("license_name") or licence.get("license", "which its card does not say")


def licence_of(base: Path) -> dict[str, str]:
    """license, license_name and license_link as the card of a base says them; {} without one."""
    card = base / CARD
    if not card.is_file():
        return {}
    with decoration("the base's licence in the model card"), card.open(encoding="utf-8") as file:
        _, _, rest = file.read(_LONGEST_HEAD).partition("---\n")
        return dict(_LICENCE.findall(rest.partition("\n---")[0]))
    return {}


def _head(base: str, kind: str, licence: dict[str, str], fingerprint: str | None) -> str:
    """The YAML that the Hub reads. A base that is a folder is no model of the Hub."""
    told = {"base_model": base} if _HUB_ID.fullmatch(base) else {}
    told |= {"base_fingerprint": fingerprint} if fingerprint else {}
    told |= {"library_name": "peft" if kind == "adapter" else "transformers"}
    told |= licence or {"license": "unknown"}
    told |= {"tags": "[lora, slimtune]" if kind == "adapter" else "[slimtune]"}
    return "\n".join(f"{name}: {value}" for name, value in told.items())


def name_of(reference: object) -> str:
    """A model or file by its name alone: where it lies here is nobody else's business."""
    text = str(reference)
    return Path(text).name if Path(text).is_absolute() else text


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
    lines = [f"| `{name}` | {_cell(value)} |" for name, value in values.items()]
    return "\n".join([f"| {head} | value |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """Four digits of a measured number; a path by its name."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value)) or "none"
    return name_of(value)
