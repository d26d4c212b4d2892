"""The file that a student is distilled into: checked from headers, decided, written, proven."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from slimtune.config import Config, Gguf
from slimtune.console import near
from slimtune.errors import ResourceError, SettingsError
from slimtune.export import allocation, importance
from slimtune.export.ggml import find_encoder
from slimtune.export.gguf_writer import write_file
from slimtune.export.go_template import chosen
from slimtune.export.imatrix import Importance
from slimtune.export.plan import Encoding, GgufPlan, as_source
from slimtune.export.preflight import preflight
from slimtune.export.proof import proof_rows
from slimtune.export.quant_types import PLAIN
from slimtune.inference.stack import batches_of
from slimtune.models.folders import local_folder
from slimtune.models.weights import Checkpoint
from slimtune.packages import pip_line
from slimtune.training.batches import Sample

_MEASURED = 256  # samples, spread evenly: more change little
_BATCH_TOKENS = 1024


def planned(config: Config, model: str, name: str) -> GgufPlan:
    """The file from headers alone; of a given size it has the smallest types until `decided`.

    Raises what `preflight` raises; SettingsError for rows that no type holds and for a size that
    the model cannot have; ResourceError where this machine cannot encode a type.
    """
    wanted, folder = config.distillation.quantised_student, local_folder(model)
    sized = isinstance(wanted, int)
    encoding = Encoding(find_encoder(config.gguf.ggml_library))
    plan = preflight(folder, "F16" if sized else wanted, encoding=encoding)
    template = chosen(folder, config.model.prompt_template)
    plan = replace(plan, template=template, generation=config.generation)
    if sized:
        plan = allocation.smallest(replace(plan, quantization=_gguf(config).target))
        with _in_words_of_this():
            allocation.require_possible(plan, _gguf(config), name)
    if plan.needs_tool:
        raise ResourceError(
            f"distillation.quantised_student: {wanted} cannot be encoded on this machine",
            "each step rounds through ggml's own code, which the package xllamacpp brings",
            f"{pip_line('xllamacpp')} on Linux or macOS, or take Q8_0, Q5_0 or Q4_0",
        )
    if all(choice.type in PLAIN for choice in plan.choices.values()):
        raise SettingsError(
            f"distillation.quantised_student: {wanted}, and {near(model)} has no rows for it",
            "quantised types hold rows of a multiple of 32 values, and no matrix has such rows",
            "convert it as it is: python finetune/convert_to_gguf.py --quantization F16",
        )
    return plan


def decided(
    config: Config,
    plan: GgufPlan,
    samples: Sequence[Sample],
    name: str,
    scratch: Path | None = None,
) -> GgufPlan:
    """The plan with its importance measured on some of the samples, and a type for every matrix.

    What flows through the model lies in `scratch` meanwhile, or among the system's own.
    """
    found = _measured(plan, samples, scratch)
    plan = replace(plan, encoding=replace(plan.encoding, importance=found))
    if plan.allocation is None:
        return plan
    return allocation.allocate(plan, _gguf(config), name)


def write_proven(
    config: Config, plan: GgufPlan, encoded: Mapping[str, np.ndarray], folder: Path, name: str
) -> dict[str, Any]:
    """FOLDER/NAME-TYPE.gguf of the `encoded` matrices, all else from the weights of `folder`.

    The metrics of the run, with the proof against the model that was planned, unrounded: whoever
    taught, a file of llama.cpp's as well. Raises what `write_file` raises, and QualityError for a
    file that is not what that model is, as far as its types allow.
    """
    file, unrounded = folder / file_name(plan, name), as_source(plan.folder)
    plan = replace(plan, checkpoint=Checkpoint(folder), encoded=encoded)
    report = write_file({file: plan}, name=name)[0]
    told = {"file": file.name, "file_bytes": report.bytes, "file_types": report.types}
    told["file_fallbacks"] = report.fallbacks
    if plan.allocation is not None:
        told |= allocation.recorded(plan.allocation)
    if config.gguf.verify == "off":
        return told
    from slimtune.export.proof import proving

    reference = proving.affordable_reference(
        unrounded, plan.template, proof_rows(config, plan.template)
    )
    tolerance = allocation.tolerance(plan)
    proof = proving.prove(file, file, plan.quantization, reference, config, tolerance=tolerance)
    return told | proof


def file_name(plan: GgufPlan, name: str) -> str:
    """NAME-TYPE.gguf, the type once where a folder is called after it."""
    kind = plan.quantization
    return f"{name.removesuffix(f'-{kind}')}-{kind}.gguf"


def require_possible_when_cut(config: Config, base: str, name: str, parameters: int) -> None:
    """What `planned` raises of a model that will be cut out of `base`; of its size a bound."""
    if isinstance(config.distillation.quantised_student, str):
        planned(config, base, name)
        return
    encoding = Encoding(find_encoder(config.gguf.ggml_library))
    plan = preflight(local_folder(base), "F16", encoding=encoding)
    with _in_words_of_this():
        allocation.require_possible_when_cut(plan, _gguf(config), name, parameters)


def _measured(plan: GgufPlan, samples: Sequence[Sample], folder: Path | None) -> Importance:
    step = max(1, len(samples) // _MEASURED)
    rows = [sample.input_ids for sample in samples[::step][:_MEASURED]]
    batches = batches_of(rows, _BATCH_TOKENS)
    with TemporaryDirectory(dir=folder) as scratch:
        found = importance.observe(
            as_source(plan.folder), plan, batches, Path(scratch), sensitive=True
        )
    sums, counts, costs = found
    means = {name: total / counts[name] for name, total in sums.items()}
    return Importance(means, "distillation", None, 0, costs)


@contextmanager
def _in_words_of_this() -> Iterator[None]:
    """What is said of a conversion's size, in the words of this setting."""
    try:
        yield
    except SettingsError as error:
        what = error.what.replace("gguf.target_size", "distillation.quantised_student")
        cure = error.cure.replace("--target-size", "--quantised-student")
        raise SettingsError(what, error.why, cure) from error


def _gguf(config: Config) -> Gguf:
    """The settings of a conversion to the size that is asked for."""
    size = {"target_size": config.distillation.quantised_student}
    size |= {"target_bits": None, "max_loss": None}
    return config.gguf.model_copy(update=size)
