"""Which models are compared on which rows: the settings' words as candidates with labels."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimtune import prompts
from slimtune.artifacts import require, run_of, system_prompt_for
from slimtune.config import Config
from slimtune.config.fields import ELSEWHERE
from slimtune.config.inputs import split_adapter
from slimtune.console import near, note
from slimtune.data.rows import beside, read_rows
from slimtune.errors import InputError, SettingsError
from slimtune.evaluation.measures import PATTERNS
from slimtune.inference.gguf_tokenizer import tokens_of
from slimtune.inference.questions import Candidate
from slimtune.inference.served_models import served_candidate
from slimtune.models.adapters import Adapter
from slimtune.models.folders import is_hub_id, local_folder
from slimtune.models.gguf_adapter import require_adapter_of
from slimtune.models.gguf_header import is_gguf, read_gguf
from slimtune.models.ollama_store import blob_of, is_ollama, plain_name
from slimtune.models.origin import say_if_unknown
from slimtune.models.served_decoding import with_decoding_of
from slimtune.models.tokenizer_files import template_facts
from slimtune.models.weights import Checkpoint

_ADAPTER_FILE = "adapter_config.json"
_ROLES = ("final", "lora_adapter")  # names that say less than their folder's


def candidates_of(config: Config) -> list[Candidate]:
    """The base, the base with its adapter, then evaluation.models.

    Raises InputError for any that cannot be loaded, before the first takes its time.
    """
    found = [*_base_and_adapter(config), *_named(config)]
    for one in found:
        _require_whole(one)
    return _told_apart(found)


def compared_of(config: Config) -> list[Candidate]:
    """The candidates as they are compared: evaluation.baseline comes first.

    SettingsError for one that is not among them; InputError as above.
    """
    found, baseline = candidates_of(config), config.evaluation.baseline
    labels = [one.label for one in found]
    if baseline is None:
        return found
    if baseline not in labels:
        near_names = difflib.get_close_matches(baseline, labels, n=1)
        raise SettingsError(
            f"evaluation.baseline: {baseline}: no model of this comparison has that name",
            f"they are called {', '.join(labels)}",
            f"did you mean {near_names[0]}?" if near_names else "name one of them, or leave it out",
        )
    return sorted(found, key=lambda one: one.label != baseline)  # the others keep their order


def partners_of(config: Config) -> list[Candidate]:
    """The same for a chat: where models are named, base and adapter may be missing.

    They are left out then, which is said where the command names them: who has one GGUF file needs
    nothing else to talk, and what config.yaml would have for a run of another kind does not matter.
    """
    if not config.evaluation.models:
        return candidates_of(config)
    found: list[Candidate] = []
    for one in _base_and_adapter(config):
        missing = next((part for part in (one.reference, one.adapter) if _is_missing(part)), None)
        setting = "evaluation.lora_model" if missing == one.adapter else "model.base_model"
        if missing and setting in config.options.flags:
            note(f"{one.label}: left out of this chat, {near(missing)} is not there")
        if not missing:
            found.append(one)
    found += _named(config)
    for one in found:
        if not is_hub_id(one.reference):  # nobody need load that one
            _require_whole(one)
    return _told_apart(found)


def _base_and_adapter(config: Config) -> list[Candidate]:
    base, adapter = config.model.base_model, config.evaluation.lora_model
    found = [Candidate("base", base)]
    return [*found, Candidate("fine-tuned", base, adapter=str(adapter))] if adapter else found


def _named(config: Config) -> list[Candidate]:
    for part in named_parts(config):
        require(part)
    return [_candidate(model, config.model.base_model) for model in config.evaluation.models]


def named_parts(config: Config) -> list[str]:
    """What evaluation.models names, one file or folder each, an adapter before its base."""
    pairs = map(split_adapter, config.evaluation.models)
    return [part for base, adapter in pairs for part in (adapter, base) if part]


def _is_missing(part: str | None) -> bool:
    return part is not None and not is_hub_id(part) and not os.path.isdir(part)


def _told_apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """With the folders above in front of labels that occur twice: runs/a/merged, runs/b/merged."""
    labels = [one.label for one in candidates]
    return [
        replace(one, label=_longer(one)) if labels.count(one.label) > 1 else one
        for one in candidates
    ]


def _longer(candidate: Candidate) -> str:
    if candidate.kind == "server":
        return candidate.reference
    where = Path(candidate.adapter or candidate.reference)
    return "/".join([*where.parts[-3:-1], candidate.label])


def _require_whole(candidate: Candidate) -> None:
    if candidate.kind == "server":  # it was asked for the model when it was named
        return
    if candidate.kind == "gguf":
        header = read_gguf(Path(candidate.reference))
        tokens_of(header)
        if candidate.adapter:
            require_adapter_of(Path(candidate.adapter), header)
        return
    checkpoint = Checkpoint(local_folder(candidate.reference))
    if candidate.adapter:
        adapter = Adapter(candidate.adapter)
        adapter.require_base(checkpoint)
        adapter.require_effect(checkpoint)
        say_if_unknown(adapter.folder, checkpoint.folder, adapter.config)


def _candidate(model: str, base: str) -> Candidate:
    reference, adapter = split_adapter(model)
    if adapter:
        return _with_adapter(reference, Path(adapter))
    if model.startswith(ELSEWHERE):
        return served_candidate(model)
    path = Path(model)
    label = path.parent.name if path.name in _ROLES else path.name.removesuffix("_model")
    if (path / _ADAPTER_FILE).is_file():
        return Candidate(label, base, adapter=model)
    if is_gguf(model):
        return Candidate(path.stem, model, tokenizer=_made_from(path))
    return Candidate(label, model)


def _with_adapter(base: str, adapter: Path) -> Candidate:
    """Two files as one model. A base in Ollama's store is read there: llama.cpp joins the two."""
    file = Path(blob_of(base) if is_ollama(base) else base)
    if not is_gguf(file):
        raise InputError(
            f"{near(base)}: no GGUF file, and {near(adapter)} goes on top of one",
            "llama.cpp puts the file of an adapter on the file of a base",
            f"python finetune/convert_to_gguf.py --model-path {near(base)}; "
            "or name the adapter's folder with --lora-model",
        )
    label = f"{plain_name(base) if is_ollama(base) else file.stem}+{adapter.stem}"
    folders = {"tokenizer": _made_from(file), "trained": _made_from(adapter)}
    return Candidate(label, str(file), adapter=str(adapter), **folders)


def _made_from(gguf: Path) -> str | None:
    """The folder, of a model or an adapter, that a GGUF of ours was made from; None for one that
    others made."""
    run = run_of(gguf)
    inputs = run["inputs"] if run else []
    folder = inputs[0]["path"] if inputs else None
    return folder if folder and os.path.isdir(folder) else None


def paths(candidates: Sequence[Candidate]) -> list[str]:
    """Everything the candidates are made of, each once, adapters and exports before their base."""
    parts = [part for one in candidates for part in (one.adapter, one.reference) if part]
    return list(dict.fromkeys(parts))


def comparison_template(config: Config) -> str:
    """The jinja source for models that bring no template of their own."""
    base = config.model.base_model
    facts = () if _is_missing(base) else template_facts(local_folder(base))
    return prompts.resolve_template(config.model.prompt_template, *facts)


def with_decoding(config: Config) -> Config:
    """The settings with the base's own decoding where `generation: base` asks for it."""
    base = config.model.base_model
    return with_decoding_of(config, None if _is_missing(base) else _here(base, config))


def _here(base: str, config: Config) -> Path | None:
    """The base's folder; one of the Hub only where its decoding is wanted, or a model needs it."""
    needed = config.generation.source == "base" or not config.evaluation.interactive
    return local_folder(base) if needed or not is_hub_id(base) else None


def test_rows(config: Config) -> tuple[list[dict[str, Any]], Path]:
    """The rows to test on and their file; those without a system message get the models' own.

    That is the settings' one, else what all training rows of the first model that has one opened
    with: every model gets the same rows. Raises InputError where there is none, or a row names an
    unknown extraction pattern.
    """
    train = config.training.train_data
    file = config.evaluation.test_data or beside(train, "test")
    if file is None:
        raise InputError(
            f"{near(train)}: no test rows beside it",
            "evaluation.test_data is not set, and prepare_data.py left no NAME_test.jsonl there",
            "run `python finetune/prepare_data.py`, or name a file with --test-data",
        )
    require(file)
    rows = read_rows(file)[: config.evaluation.max_rows or None]
    for row in rows:
        _require_pattern(row, file)
    system = system_prompt_for(config, *trained(config))
    return [_opened(row, system) for row in rows], file


def trained(config: Config) -> list[Path]:
    """What is compared with the base, and may have been trained under a system message."""
    named = [config.evaluation.lora_model, *named_parts(config), config.model.base_model]
    return [Path(one) for one in named if one]


def _opened(row: dict[str, Any], system: str) -> dict[str, Any]:
    if not system or row["messages"][0]["role"] == "system":
        return row
    return row | {"messages": [{"role": "system", "content": system}, *row["messages"]]}


def _require_pattern(row: Mapping[str, Any], file: Path) -> None:
    name = row.get("extract") or "whole"
    if not isinstance(name, str) or name not in PATTERNS:
        raise InputError(
            f"{near(file)}: row {row['id']} names the extraction pattern {str(name)[:60]!r}",
            f"known are {', '.join(PATTERNS)}",
            'correct its field "extract", or leave it out and use --extract for all rows',
        )
