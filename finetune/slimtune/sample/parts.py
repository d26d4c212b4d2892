"""The parts that create_sample_data makes, each finished on its own: a stopped run goes on.

The sample models as they ship: bf16 weights beside the library.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slimtune.artifacts import (
    Stage,
    finish_files,
    refuse_finished,
    refuse_finished_files,
    refuse_inputs,
    run_of,
    stage_files,
    stage_folder,
)
from slimtune.config import Config
from slimtune.console import near, note
from slimtune.sample import messy
from slimtune.sample.kinds import SAMPLE_FILES, SAMPLE_KINDS, as_csv, as_json
from slimtune.sample.world import rows, world_text

_STAGE = "create_sample_data"
_RAW, _TEXT = "raw_data.json", "sample_text.txt"
_ROWS = ("sample.rows", "sample.seed")
_ON_DEMAND = (*SAMPLE_KINDS, "messy")
_SPLIT = ("data.validation_ratio", "data.test_ratio", "data.group_column", "data.seed")


@dataclass(frozen=True)
class Part:
    """One output with its record, the settings that decide its content, and what fills it.

    `fill` puts files into the stage's folder and numbers into its metrics.
    """

    output: Path
    manifest: Path
    settings: tuple[str, ...]
    fill: Callable[[Stage], None]
    beside: tuple[str, ...] = ()  # names of the files that come with `output`

    @property
    def is_folder(self) -> bool:
        return self.manifest.parent == self.output

    @property
    def outputs(self) -> list[Path]:
        return [self.output, *map(self.output.with_name, self.beside)]


def missing(config: Config) -> list[Part]:
    """The parts still to be made; one that an earlier run finished is kept, and a word says so.

    Raises SettingsError where a part was made with other settings, and where all are there.
    """
    parts = _wanted(config)
    refuse_inputs([parts[-1].output], parts[0].outputs)  # the models' record names the rows
    found = [part for part in parts if _is_finished(part, config)]
    if len(found) == len(parts):
        _refuse(parts[0], config)
    for part in found:
        note(f"kept  {near(part.output)}: finished by an earlier run with the same settings")
    return [part for part in parts if part not in found]


def make(part: Part, config: Config) -> dict[str, Any]:
    """Write the part, whole or not at all; its numbers."""
    raw = config.sample.output_dir / _RAW
    stage = (
        stage_folder(_STAGE, part.output, config, inputs=[raw])
        if part.is_folder
        else stage_files(_STAGE, part.manifest, config, outputs=part.outputs)
    )
    with stage as opened:
        part.fill(opened)
        return dict(opened.metrics)


def example(config: Config) -> Path:
    """The file to try prepare_data on next: the one of the kind asked for, else raw_data.json."""
    kind = config.sample.kind
    return config.sample.output_dir / (SAMPLE_FILES[kind] if kind in _ON_DEMAND else _RAW)


def _wanted(config: Config) -> list[Part]:
    """The raw rows, the files of the kind asked for, the models; in the order they are made."""
    sample = config.sample
    folder, models = sample.output_dir, sample.models_dir
    raw = Part(
        folder / _RAW,
        folder / "raw_data_run.json",
        (*_ROWS, "sample.text_lines"),
        _fill_raw,
        beside=(SAMPLE_FILES["csv"], _TEXT),
    )
    kinds = [kind for kind in _ON_DEMAND if sample.kind in (kind, "all")]
    trained = (*_ROWS, *_SPLIT) if sample.train_models else ()
    made = ("sample.train_models", *trained)
    return [raw, *(_of_kind(kind, folder) for kind in kinds)] + [
        Part(models, models / "run.json", made, _fill_models)
    ]


def _of_kind(kind: str, folder: Path) -> Part:
    output, manifest = folder / SAMPLE_FILES[kind], folder / f"raw_data_{kind}_run.json"
    if kind == "messy":
        return Part(output, manifest, (*_ROWS, *_SPLIT), _fill_messy)
    return Part(output, manifest, _ROWS, partial(_fill_kind, kind))


def _is_finished(part: Part, config: Config) -> bool:
    """Whether the part is there, made with these settings; SettingsError if with others."""
    if not part.is_folder:
        finish_files(part.manifest, config, part.outputs)
    run = None if config.options.overwrite else run_of(part.output)
    settings = config.model_dump(mode="json")
    if run is None or any(
        _value(run["settings"], name) != _value(settings, name) for name in part.settings
    ):
        _refuse(part, config)
        return False
    return True


def _value(settings: Mapping[str, Any], name: str) -> Any:
    section, field = name.split(".")
    return settings.get(section, {}).get(field)


def _refuse(part: Part, config: Config) -> None:
    if part.is_folder:
        refuse_finished(part.output, config)
    else:
        refuse_finished_files(part.manifest, config, part.outputs)


def _fill_raw(stage: Stage) -> None:
    sample = stage.config.sample
    written = rows(sample.seed, sample.rows)
    as_json(stage.folder / _RAW, written)
    as_csv(stage.folder / SAMPLE_FILES["csv"], written)
    with (stage.folder / _TEXT).open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in world_text(sample.seed, sample.text_lines))
    stage.metrics["rows"] = len(written)


def _fill_kind(kind: str, stage: Stage) -> None:
    sample = stage.config.sample
    write = SAMPLE_KINDS[kind]
    write(stage.folder / SAMPLE_FILES[kind], rows(sample.seed, sample.rows))


def _fill_messy(stage: Stage) -> None:
    sample, data = stage.config.sample, stage.config.data
    written = rows(sample.seed, sample.rows)
    planted = messy.write_messy(stage.folder / SAMPLE_FILES["messy"], written, data, sample.seed)
    stage.metrics.update({f"messy {name}": count for name, count in planted.items()})


def _fill_models(stage: Stage) -> None:
    if not stage.config.sample.train_models:
        unpack(stage.folder)
        return
    from slimtune.sample.pretraining import train_models

    note("training both models from nothing: see finetune/slimtune/sample/README.md")
    train_models(stage.folder, stage.config.sample.seed, _lessons(stage.config))


def _lessons(config: Config) -> list[list[dict[str, str]]]:
    """The conversations of the training split that prepare_data will make of the raw rows."""
    from slimtune.data import preparation

    raw = config.data.model_copy(update={"input": config.sample.output_dir / _RAW})
    return [row["messages"] for row in preparation.prepare(raw).rows("train")]


WEIGHTS = Path(__file__).parent / "weights"
SAMPLE_MODELS = ("base", "teacher")


def unpack(folder: Path) -> list[Path]:
    """Copy the shipped models to `folder`/base and `folder`/teacher; returns the two folders."""
    return [
        Path(shutil.copytree(WEIGHTS / n, folder / n, dirs_exist_ok=True)) for n in SAMPLE_MODELS
    ]
