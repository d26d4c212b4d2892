"""A conversion as the settings ask for it: plans, importance, who writes the files, their proof."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from slimtune.artifacts import Stage, stage_files
from slimtune.artifacts.model_names import automatic_name
from slimtune.config import Config
from slimtune.console import size
from slimtune.data.rows import validation_file
from slimtune.errors import SlimTuneError
from slimtune.export import allocation, preflight
from slimtune.export.ggml import find_encoder
from slimtune.export.gguf_writer import ConversionReport, write_file
from slimtune.export.go_template import chosen
from slimtune.export.imatrix import read_imatrix
from slimtune.export.llama_tools import quantize_file
from slimtune.export.plan import Encoding, GgufPlan, ModelSource
from slimtune.export.proof import proof_rows
from slimtune.machine.process import large_blocks_returned
from slimtune.models.merging import MergedCheckpoint
from slimtune.models.ollama_store import file_name
from slimtune.models.origin import MODEL_FINGERPRINT, fingerprint
from slimtune.models.served_decoding import with_decoding_of

_log = logging.getLogger(__name__)


def named(config: Config) -> Config:
    """The settings with a name where gguf.model_name is auto; it is told with its reason."""
    gguf = config.gguf
    if gguf.model_name != "auto":
        return config
    name, reason = automatic_name(gguf.model_path, gguf.lora_model)
    _log.info("name: %s (gguf.model_name is auto: %s)", name, reason)
    return config.model_copy(update={"gguf": gguf.model_copy(update={"model_name": name})})


def files_of(config: Config) -> list[Path]:
    """OUTPUT_DIR/NAME-TYPE.gguf for each type, or NAME-TARGET.gguf."""
    gguf = config.gguf
    model = file_name(gguf.model_name)
    return [gguf.output_dir / f"{model}-{name}.gguf" for name in gguf.kinds]


def manifest_of(file: Path) -> Path:
    return file.with_name(f"{file.stem}_run.json")


def written_with(file: Path, config: Config) -> list[Path]:
    """The file and what may be written beside it: with the first of several, the importance.

    One that is read instead is not written, and stays.
    """
    importance = file.with_name(f"{file_name(config.gguf.model_name)}.imatrix.gguf")
    given = config.gguf.imatrix
    is_read = isinstance(given, Path) and given.resolve() == importance.resolve()
    return [file] if is_read else [file, importance]


def read_by(config: Config) -> list[Path | str | None]:
    """What a conversion reads, by name."""
    gguf, rows = config.gguf, [config.training.train_data, config.evaluation.test_data]
    rows.append(validation_file(config.training))
    importance = gguf.imatrix if isinstance(gguf.imatrix, Path) else None
    return [gguf.model_path, gguf.lora_model, importance, *rows]


def plans_for(source: ModelSource, config: Config) -> list[GgufPlan]:
    """One plan for each type of `gguf.quantization`; raises what `preflight` raises for them.

    With a target it is one, of the smallest types until what errors cost is measured; raises
    SettingsError for a target that they miss, and where there are no rows to measure on.
    """
    gguf = config.gguf
    named = read_imatrix(gguf.imatrix) if isinstance(gguf.imatrix, Path) else None
    encoding = Encoding(find_encoder(gguf.ggml_library), named, gguf.through_f16)
    first, *others = gguf.quantization if gguf.target is None else ["F16"]
    # Where types are allocated, only those that can be encoded here are.
    needed = encoding if gguf.target is None else replace(encoding, importance=None)
    plan = preflight.preflight(source, first, encoding=needed)
    template = chosen(source.folder, config.model.prompt_template)
    generation = with_decoding_of(config, source.folder).generation
    plan = replace(plan, template=template, generation=generation)
    if gguf.target is not None:
        plan = replace(plan, quantization=gguf.target, encoding=encoding)
        plan = allocation.smallest(plan)
        allocation.require_possible(plan, gguf, file_name(gguf.model_name))
    if gguf.measures_importance:
        preflight.require_rows(config)
    plans = [plan, *(replace(plan, quantization=name) for name in others)]
    for one in plans:
        preflight.require_encoder(one)
    proof_rows(config, plan.template)  # rows that cannot be read are told now
    return plans


def conversion_lines(plans: Iterable[GgufPlan]) -> dict[str, str]:
    """Size, types, and every tensor that fell back, for a script's last lines."""
    plans = list(plans)
    if len(plans) == 1:
        return preflight.preflight_lines(plans[0])
    return {
        plan.quantization: "; ".join(
            f"{key} {text}" for key, text in preflight.preflight_lines(plan).items()
        )
        for plan in plans
    }


def convert_and_prove(
    source: ModelSource,
    plans: dict[Path, GgufPlan],
    config: Config,
    noted: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Writes every file, proves each, and gives those that pass their names; the closing numbers.

    `noted` goes into the first file's record.

    Raises what `write` raises, and what `prove` does for the first file that fails: it and none but
    the ones that fail are left without their final names. Before that it raises QualityError for a
    merge on the way that is not what base and adapter are under peft.
    """
    gguf = config.gguf
    if isinstance(source.checkpoint, MergedCheckpoint) and gguf.verify != "off":
        from slimtune.models.merge_proof import require_as_peft  # and torch, transformers, peft

        require_as_peft(source.checkpoint, source.checkpoint)
    inputs = [path for path in (gguf.model_path, gguf.lora_model) if path]
    with ExitStack() as every:
        open_stages = {file: every.enter_context(ExitStack()) for file in plans}
        stages = {
            file: stack.enter_context(
                stage_files(
                    "convert_to_gguf",
                    manifest_of(file),
                    config,
                    outputs=written_with(file, config),
                    inputs=inputs,
                )
            )
            for file, stack in open_stages.items()
        }
        plans, reports = _convert(source, plans, stages, config)
        for stage in stages.values():
            stage.metrics[MODEL_FINGERPRINT] = fingerprint(source.checkpoint, as_read=True)
        next(iter(stages.values())).metrics.update(noted)
        proofs = _prove(source, plans, stages, open_stages, config)
    numbers = conversion_lines(plans.values()) | {"parameters": f"{reports[0].parameters:,}"}
    if len(reports) == 1:
        numbers["on disk"] = size(reports[0].bytes)
    return numbers | proofs


def rehearsed(
    source: ModelSource, plans: dict[Path, GgufPlan], config: Config
) -> dict[Path, GgufPlan]:
    """For a dry run: the plans with what is measured and decided before the first byte."""
    with TemporaryDirectory() as folder:
        return _informed(source, plans, Path(folder) / "imatrix.gguf", config)


def _informed(
    source: ModelSource, plans: dict[Path, GgufPlan], imatrix: Path, config: Config
) -> dict[Path, GgufPlan]:
    """The plans with the importance that is asked for, measured into `imatrix`, and their types."""
    gguf, name = config.gguf, file_name(config.gguf.model_name)
    if gguf.measures_importance:
        from slimtune.export.importance import measure_importance  # torch and transformers

        sensitive = gguf.target is not None or config.options.dry_run
        first = next(iter(plans.values()))
        found = measure_importance(source, first, imatrix, config, sensitive=sensitive)
        plans = {
            file: replace(plan, encoding=replace(plan.encoding, importance=found))
            for file, plan in plans.items()
        }
    if gguf.target is None:
        return plans
    return {file: allocation.allocate(plan, gguf, name) for file, plan in plans.items()}


@large_blocks_returned()  # 115 MB, not 120 (two layers of 1.1 B), for 78 CPU s, not 74
def _convert(
    source: ModelSource, plans: dict[Path, GgufPlan], stages: dict[Path, Stage], config: Config
) -> tuple[dict[Path, GgufPlan], list[ConversionReport]]:
    """All types from one read; those that no library here encodes through llama-quantize.

    The plans come back as they were carried out: with what was measured, and what it decided.
    """
    name = file_name(config.gguf.model_name)
    imatrix = next(iter(stages.values())).folder / f"{name}.imatrix.gguf"
    plans = _informed(source, plans, imatrix, config)
    if not imatrix.is_file():
        imatrix = config.gguf.imatrix
    written = {file: stages[file].folder / file.name for file in plans}
    own = [file for file, plan in plans.items() if not plan.needs_tool]
    reports = {}
    if own:
        made = write_file({written[file]: plans[file] for file in own}, name=name)
        reports = dict(zip(own, made, strict=True))
    for file in plans.keys() - reports.keys():
        reports[file] = _by_tool(plans[file], written[file], imatrix, name)
    for file, report in reports.items():
        stages[file].metrics.update(vars(report))
        if plans[file].allocation is not None:
            stages[file].metrics.update(allocation.recorded(plans[file].allocation))
    return plans, [reports[file] for file in plans]


def _prove(
    source: ModelSource,
    plans: dict[Path, GgufPlan],
    stages: dict[Path, Stage],
    open_stages: dict[Path, ExitStack],
    config: Config,
) -> dict[str, str]:
    """The proofs in words; each stage is closed, and its file has its name, once it is proven."""
    if config.gguf.verify == "off":
        return {"proof": "off: nothing was compared"}
    # Imported after the files are written: torch and transformers weigh ten times a conversion.
    from slimtune.export.proof import proving

    template = next(iter(plans.values())).template
    rows = proof_rows(config, template)
    said, failures = {}, []
    written = {file: stages[file].folder / file.name for file in plans}
    with proving.failures_kept(written):
        reference = proving.affordable_reference(source, template, rows)
    for file, plan in plans.items():
        try:
            with proving.failures_kept({file: written[file]}):
                allowed = allocation.tolerance(plan)
                parts = written[file], file, plan.quantization, reference, config
                proof = proving.prove(*parts, tolerance=allowed)
        except SlimTuneError as error:
            _log.warning("%s", error)
            failures.append(error)
            continue
        stages[file].metrics.update(proof)
        open_stages[file].close()
        key = "proof" if len(plans) == 1 else f"proof of {plan.quantization}"
        said[key] = proving.proof_lines(proof)
    if failures:
        raise failures[0]
    return said


def _by_tool(plan: GgufPlan, file: Path, imatrix: Path | None, name: str) -> ConversionReport:
    halves = replace(plan, quantization="F16", encoding=replace(plan.encoding, importance=None))
    with TemporaryDirectory(dir=file.parent) as folder:
        temporary = Path(folder) / "f16.gguf"
        report = write_file({temporary: halves}, name=name)[0]
        quantize_file(temporary, file, plan.quantization, imatrix)
    return replace(report, bytes=file.stat().st_size, types=plan.types, fallbacks=plan.fallbacks)
