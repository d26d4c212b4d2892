"""A student that learns through the types of its file, as knowledge_distillation.py runs it.

The model itself, unrounded, is the teacher unless another is named, and the only one: at every
token, prompt and answer alike, the file is to say what its model said.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from slimtune.config import Config, Distillation
from slimtune.console import near, processes, size
from slimtune.errors import SettingsError
from slimtune.export import preflight
from slimtune.export.plan import GgufPlan
from slimtune.export.quant_types import PLAIN, quantization
from slimtune.inference.layer_lessons import STEP_TOKENS
from slimtune.models import loading, memory
from slimtune.models.folders import local_folder
from slimtune.models.weights import Checkpoint
from slimtune.quantised.straight_through import QuantisedTrainer, QuantisedWeights
from slimtune.quantised.student_file import decided, file_name, planned, write_proven
from slimtune.training import distillation, distillation_stage, estimates, pipeline, teachers
from slimtune.training.attention import training_compute
from slimtune.training.batches import Sample
from slimtune.training.curve import Curve
from slimtune.training.dataset import Dataset
from slimtune.training.effect import NoEffect
from slimtune.training.lora import Learner
from slimtune.training.timing import dry_run

_log = logging.getLogger(__name__)


def settled(config: Config, student: str) -> Config:
    """The settings with what `auto` means for such a student: itself as teacher, in float32.

    Divergences of a file are as small as what bfloat16 products add. Raises SettingsError for
    choices that do not go together, before anything is loaded.
    """
    settings = config.distillation
    require_choices(config)
    if settings.alpha != Distillation().alpha:
        _log.warning("caution: distillation.alpha is not read: only the teacher counts")
    _require_own_teacher(settings, student)
    if settings.teacher_model == "auto":
        _log.info("teacher auto: %s, the student before it is quantised", near(student))
        settings = settings.model_copy(update={"teacher_model": student})
    model = config.model
    if model.dtype == "auto":
        model = model.model_copy(update={"dtype": "float32"})
    return config.model_copy(update={"distillation": settings, "model": model})


def require_possible(config: Config, student: str) -> None:
    """Raises what `planned` does, and ResourceError where the file could not be proven."""
    preflight.require_proof(config.gguf)
    planned(config, student, config.distillation.output_dir.name)


def student(config: Config, model: str, text: Sequence[str]) -> pipeline.Method:
    """`distillation_stage.student` through the types of a file, which is written beside it."""
    run = _Run(model, text, config.distillation.output_dir.name)
    usual = distillation_stage.student(config, model, text)
    return replace(usual, lesson=run.lesson, load=run.load, judge=run.judge, save=run.save)


def plan_distillation(
    config: Config, model: str, dataset: Dataset, text: Sequence[str]
) -> dict[str, Any]:
    """The lines of --dry-run: teacher, student and the file."""
    train, validation = samples_of(config, dataset, text)
    run = estimates.student_run(config, model, dataset, text)
    plan = planned(config, model, config.distillation.output_dir.name)
    most = config.distillation.quantised_student if plan.allocation else plan.bytes
    lines = {"text passages": len(text), "file": f"{plan.quantization}, {size(most)}"}
    lines["layer by layer"] = f"about {layers_memory(model, train)} with --student layers"
    lines |= types_of(plan) | teachers.estimate_teacher(config, [*train, *validation], model)
    return lines | dry_run(config, model, run, dataset.train)


def layers_memory(model: str, samples: Sequence[Sample]) -> memory.MemoryEstimate:
    """What it would take to teach the layers one after another."""
    lengths = [len(one.input_ids) for one in samples]
    tokens, longest = min(STEP_TOKENS, sum(lengths)), max(lengths, default=0)
    return memory.layer_by_layer(Checkpoint(local_folder(model)).config, tokens, longest)


class _Run:
    """One run: what `lesson` reads decides the file, `load` begins it, `save` writes it."""

    def __init__(self, model: str, text: Sequence[str], name: str) -> None:
        self._model, self._text, self._name = model, text, name
        self._samples: list[Sample] = []
        self._weights: QuantisedWeights | None = None

    def lesson(self, config: Config, dataset: Dataset) -> pipeline.Lesson:
        distillation.require_teachable(config, self._model)
        train, validation = samples_of(config, dataset, self._text)
        options = distillation.fit_options(config, self._model, [*train, *validation])
        taught = config.distillation.model_copy(update={"alpha": 1.0})
        options |= {"trainer_class": QuantisedTrainer, "distillation": taught}
        options["weights"] = lambda: self._weights
        self._samples = train
        return pipeline.Lesson(train, validation, options, {"text_passages": len(self._text)})

    def load(self, config: Config) -> Learner:
        """The model with the weights that it begins with; of a resumed run they are replaced."""
        plan = planned(config, self._model, self._name)
        self._plan = decided(config, plan, self._samples, self._name)
        self._weights = QuantisedWeights(self._plan)
        self._begun = {name: one.copy() for name, one in self._weights.encoded().items()}
        compute = training_compute(config.model).learning_whole()
        model = loading.load_model(self._model, compute).float()
        self._weights.install(model)
        return Learner(model)

    def judge(self, curve: Curve, checkpoints: Path) -> pipeline.Figures:
        distillation.require_better(curve, checkpoints)
        return distillation.perplexities(curve) | divergences(curve)

    def save(
        self, config: Config, learner: Learner, dataset: Dataset, folder: Path
    ) -> pipeline.Proof:
        source = local_folder(self._model)
        with self._weights.in_place_of(learner.model):
            loading.save_model(learner.model, dataset.tokenizer, folder, source)
        encoded, self._weights = self._weights.encoded(), None
        return partial(self._prove, config, encoded, folder)

    def _prove(self, config: Config, encoded: dict[str, Any], folder: Path) -> pipeline.Figures:
        changed = sum(int((encoded[name] != self._begun[name]).sum()) for name in encoded)
        if not changed:
            raise NoEffect("student", "every byte of its matrices is what it was before training")
        share = changed / sum(one.size for one in encoded.values())
        told = write_proven(config, self._plan, encoded, folder, self._name)
        wanted = config.distillation.quantised_student
        return {"quantised_student": wanted, "changed_bytes": round(share, 5)} | told


def divergences(curve: Curve) -> dict[str, float]:
    """KL divergence from the teacher on the rows kept aside: of the file as its encoder alone makes
    it, and of the one that is kept; nats a token, what is beyond top_k in one bucket."""
    found = [entry["eval_kd"] for entry in curve.history if "eval_kd" in entry]
    return {"divergence_before": found[0], "divergence_after": min(found)} if found else {}


def figures(config: Config, model: str, curve: Curve) -> dict[str, str]:
    """The script's last lines about the file: its divergences, and types that fell back."""
    plan = planned(config, model, config.distillation.output_dir.name)
    return {"divergence": " -> ".join(map(str, divergences(curve).values()))} | types_of(plan)


def types_of(plan: GgufPlan) -> dict[str, str]:
    """Those of a named type; those of a size are decided by what errors cost."""
    known = preflight.preflight_lines(plan) if plan.allocation is None else {}
    return {what: known[what] for what in ("types", "fallbacks") if what in known}


def file_of(config: Config, model: str) -> Path:
    """Where the file lies, or will lie."""
    final = config.distillation.output_dir
    return final / file_name(planned(config, model, final.name), final.name)


def samples_of(
    config: Config, dataset: Dataset, text: Sequence[str]
) -> tuple[list[Sample], list[Sample]]:
    """`distillation.samples_of` with every token learned, that of a prompt as well."""
    groups = distillation.samples_of(config, dataset, text)
    train, validation = ([replace(one, labels=one.input_ids) for one in group] for group in groups)
    return train, validation


def _require_own_teacher(settings: Distillation, student: str) -> None:
    """SettingsError for a teacher other than the student of one that learns layer by layer."""
    teacher = settings.teacher_model
    if settings.student != "layers" or teacher == "auto":
        return
    if os.path.realpath(teacher) != os.path.realpath(student):
        raise SettingsError(
            f"distillation.teacher_model: {teacher} for a student that learns layer by layer",
            "each layer learns to give what it gave itself before it was rounded",
            "use --teacher-model auto, or --student full, which can follow another model",
        )


def require_choices(config: Config) -> None:
    """SettingsError for what does not go together."""
    settings, wanted = config.distillation, config.distillation.quantised_student
    asked = f"distillation.quantised_student: {wanted}"
    if isinstance(wanted, str) and quantization(wanted).default in PLAIN:
        raise SettingsError(
            asked,
            "nothing is rounded in it that training could make up for",
            "name a quantised type such as Q4_K_M, or convert with convert_to_gguf.py",
        )
    if settings.student == "lora":
        raise SettingsError(
            f"{asked} of a student that learns by adapters",
            "an adapter moves whole matrices at once, and rounding takes most of it back",
            "use --student full, or --student layers for a model too large for that",
        )
    if settings.mode == "sequence":
        raise SettingsError(
            f"{asked} in mode sequence",
            "written answers do not say how likely the other tokens are",
            "use --mode cached or --mode online",
        )
    if processes() > 1:
        raise SettingsError(
            f"{asked} in {processes()} processes",
            "the codes of a file follow the weights in one process",
            "start the script by python alone, without a launcher",
        )
