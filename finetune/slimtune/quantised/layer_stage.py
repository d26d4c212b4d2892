"""A student that learns layer by layer through the types of its file: `--student layers`.

In place of a training of the whole model (`student`): the model before it is quantised is its own
teacher, and one layer of each is in memory, on the processor. What of a stopped run has learned
lies where checkpoints do.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimtune.artifacts import stage_folder
from slimtune.artifacts.files import write_json
from slimtune.config import Config, Distillation
from slimtune.console import size
from slimtune.errors import QualityError
from slimtune.models import memory, tokenizers
from slimtune.models.folders import local_folder
from slimtune.models.served_decoding import write_generation_config
from slimtune.models.weights import Checkpoint
from slimtune.quantised.layer_progress import Progress
from slimtune.quantised.layers import Lesson, Taught, teach_layers
from slimtune.quantised.student import layers_memory, samples_of, types_of
from slimtune.quantised.student_file import decided, planned, write_proven
from slimtune.report.model_card import write_derived_card
from slimtune.settings.flags import named
from slimtune.training import prechecks
from slimtune.training.batches import Sample
from slimtune.training.dataset import Dataset
from slimtune.training.rates import is_far

_log = logging.getLogger(__name__)

# A layer alone stands larger steps than the whole student, which gets 1e-5: once through 960 rows
# the sample (256 wide) as large as Q4_K_M, which lost 0.00161 nats a token before, lost 0.00142 at
# 1e-5, 0.00130 at 3e-5, 0.00119 at 1e-4, 0.00116 at 3e-4 and 0.00232 at 1e-3. Wider models get less
# as `training.rates` has it.
_RATE, _WIDTH, _FALL = 3e-4, 256, 0.78
UNREAD = ("mode", "top_k", "temperature", "divergence", "teacher_quantization")


def plan_distillation(
    config: Config, model: str, dataset: Dataset, text: Sequence[str]
) -> dict[str, Any]:
    """The lines of --dry-run: the file, what learns and the memory it needs."""
    config = settled(config, model)
    train, validation = samples_of(config, dataset, text)
    plan = planned(config, model, config.distillation.output_dir.name)
    most = config.distillation.quantised_student if plan.allocation else plan.bytes
    needed, available = layers_memory(model, [*train, *validation]), memory.available_memory()
    layers = memory.ModelShape.of(Checkpoint(local_folder(model)).config).layers
    lines = {"text passages": len(text), "file": f"{plan.quantization}, {size(most)}"}
    lines |= types_of(plan) | {"trainable": f"{layers} layers, one after another"}
    return lines | {"memory": f"{memory.fit_verdict(needed, available)} (on cpu)"}


def require_resumable(config: Config, model: str, dataset: Dataset, checkpoints: Path) -> None:
    """Raises SettingsError where --resume would refuse: for a dry run, which resumes nothing."""
    if config.options.resume:
        Progress.require_same(checkpoints, _conditions(settled(config, model), model, dataset))


def distil(
    config: Config, model: str, dataset: Dataset, text: Sequence[str], checkpoints: Path
) -> dict[str, str]:
    """Writes the folder of the student and its file; the script's last lines about them.

    Raises QualityError where the file came no closer to the model on the rows kept aside.
    """
    config = settled(config, model)
    final, source = config.distillation.output_dir, local_folder(model)
    conditions = _conditions(config, model, dataset)
    with stage_folder(
        "knowledge_distillation", final, config, inputs=[model, *dataset.named.values()]
    ) as stage:
        progress = Progress(checkpoints, conditions, resume=config.options.resume)
        train, validation = samples_of(config, dataset, text)
        plan = planned(config, model, final.name)
        plan = decided(config, plan, train, final.name, scratch=stage.folder)
        scratch = stage.folder / "scratch"
        lesson = _lesson(config, train, validation)
        taught = teach_layers(plan, lesson, stage.folder, scratch, progress)
        _require_better(taught, config, _usual_rate(model), checkpoints)
        told = {k: v for k, v in Checkpoint(source).config.items() if k != "torch_dtype"}
        write_json(stage.folder / "config.json", told | {"dtype": "float32"})
        tokenizers.save_tokenizer(dataset.tokenizer, stage.folder, source)
        told = write_proven(config, plan, taught.encoded, stage.folder, final.name)
        write_generation_config(stage.folder, config.generation, source)
        taught.encoded.clear()
        shutil.rmtree(scratch)
        figures = _figures(taught)
        stage.metrics |= {"quantised_student": config.distillation.quantised_student} | told
        stage.metrics |= {"parameters": plan.parameters, "text_passages": len(text)}
        stage.metrics |= dataset.summary() | {"system_prompt": dataset.system_prompt} | figures
        how = f"each layer taught through the types of {told['file']}"
        card = {name: value for name, value in figures.items() if name != "layer_errors"}
        write_derived_card(stage.folder, model, how, card, base_folder=source)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return _closing(taught) | types_of(plan)


def settled(config: Config, model: str) -> Config:
    """The settings with a layer's learning rate in place of `auto`; what is not read is said."""
    settings, usual = config.distillation, Distillation()
    for name in UNREAD:
        if getattr(settings, name) != getattr(usual, name):
            _log.warning("caution: distillation.%s is not read: a layer learns what it gave", name)
    rate, what = _usual_rate(model), "layers of that width through the types of a file"
    if settings.learning_rate == "auto":
        _log.info("learning rate auto: %g, usual for %s", rate, what)
        settings = settings.model_copy(update={"learning_rate": rate})
    elif is_far(settings.learning_rate, rate):
        flag = named("distillation.learning_rate")
        given = settings.learning_rate
        _log.warning("caution: %s %g is far off: %g is usual for %s", flag, given, rate, what)
    return config.model_copy(update={"distillation": settings})


def _usual_rate(model: str) -> float:
    hidden = Checkpoint(local_folder(model)).config["hidden_size"]
    return float(f"{_RATE * (_WIDTH / hidden) ** _FALL:.2g}")


def _lesson(config: Config, train: Sequence[Sample], validation: Sequence[Sample]) -> Lesson:
    settings, rows = (
        config.distillation,
        ([one.input_ids for one in some] for some in (train, validation)),
    )
    return Lesson(*rows, settings.learning_rate, settings.epochs, config.training.seed)


def _conditions(config: Config, model: str, dataset: Dataset) -> dict[str, str]:
    models = {"student model": model}
    sections = ("distillation", "training")
    return prechecks.resume_conditions(config, sections, models, dataset.named)


def _require_better(taught: Taught, config: Config, usual: float, checkpoints: Path) -> None:
    """QualityError for a file that is no closer to its model on the rows kept aside."""
    before, after = taught.divergences
    if taught.changed and after < before:
        return
    shutil.rmtree(checkpoints, ignore_errors=True)  # it came to its end: nothing to go on with
    rate = config.distillation.learning_rate
    move = "raise" if rate < usual else "lower"
    said = f"the file came no closer to its model: {before:.4g} -> {after:.4g} nats a token"
    raise QualityError(
        said if taught.changed else "no layer came closer to what it gave before it was rounded",
        f"on rows kept aside, at a learning rate of {rate:g}, where {usual:g} is usual",
        f"{move} {named('distillation.learning_rate')}, give more rows, or let the encoder alone "
        "make the file with convert_to_gguf.py --target-size",
    )


def _figures(taught: Taught) -> dict[str, Any]:
    """What run.json says of the layers."""
    before, after = taught.divergences
    return {
        "layer_errors": [[float(f"{one:.4g}") for one in pair] for pair in taught.errors],
        "divergence_before": float(f"{before:.4g}"),
        "divergence_after": float(f"{after:.4g}"),
        "changed_bytes": round(taught.changed / taught.counted, 5),
        "updates_of_a_layer": taught.updates,
    }


def _closing(taught: Taught) -> dict[str, str]:
    first, last = (sum(one) / len(taught.errors) for one in zip(*taught.errors, strict=True))
    better = sum(after < before for before, after in taught.errors)
    return {
        "divergence": " -> ".join(f"{one:.4g}" for one in taught.divergences),
        "layers": f"{better} of {len(taught.errors)} closer",
        "layer error": f"{first:.3g} -> {last:.3g} on average",
    }
