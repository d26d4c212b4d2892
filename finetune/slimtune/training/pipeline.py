"""One training run, whatever learns: inputs in, a finished folder out.

    automatic settings -> conditions -> stage folder -> resume -> load -> fit -> save -> prove
    -> curve, metrics, card -> clean up

`train` is that line. A `Method` says how one kind of run loads what learns, saves it and proves it:
`adapter` and `whole` are here, `student` is in `distillation_stage`.
"""

import gc
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.config.training import LEAST_TO_CHOOSE
from slimtune.console import decoration, first_process
from slimtune.machine.process import return_free_blocks
from slimtune.models import loading, tokenizers
from slimtune.models.compute import Compute
from slimtune.models.folders import local_folder
from slimtune.models.origin import FINGERPRINT, fingerprint
from slimtune.models.served_decoding import write_generation_config
from slimtune.models.weights import EMBEDDING, Checkpoint
from slimtune.report import model_card
from slimtune.training import (
    automatic,
    effect,
    estimates,
    initialisation,
    lora,
    prechecks,
    sharding,
    soundness,
)
from slimtune.training.attention import training_compute
from slimtune.training.batches import Sample
from slimtune.training.checkpoints import conditions_of, found, to_resume
from slimtune.training.curve import Curve
from slimtune.training.dataset import Dataset
from slimtune.training.fitting import fit
from slimtune.training.forward import causal_model
from slimtune.training.lora import Learner

_log = logging.getLogger(__name__)

Figures = dict[str, Any]
Proof = Callable[[], Figures]


@dataclass(frozen=True)
class Lesson:
    """What a learner is given: samples, what `fit` is told besides, and what metrics tell of it."""

    train: list[Sample]
    validation: list[Sample]
    options: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)

    def teach(
        self, learner: Learner, config: Config, checkpoints: Path, resumed: dict[str, Any]
    ) -> Curve:
        """Train the learner in place."""
        return fit(
            learner.model,
            self.train,
            self.validation,
            config.training,
            checkpoints,
            **resumed,
            **self.options,
        )


def _rows_alone(config: Config, dataset: Dataset) -> Lesson:
    rows = len(dataset.validation)
    if few := 0 < rows < LEAST_TO_CHOOSE:
        _log.info("%d validation rows: too few to choose the best point by, the last is kept", rows)
    return Lesson(dataset.train, dataset.validation, {"chooses": not few})


def _nothing_more(curve: Curve, checkpoints: Path) -> Figures:
    return {}


@dataclass(frozen=True)
class Method:
    """How one kind of run differs from the others.

    `models` are the inputs by what they are for, first the one that learns; `sections` are the
    settings that a resumed run must share. `save` writes the learner whole and returns the proof
    that is still to be given once the learner's memory is free. `judge` raises QualityError for a
    learner that is not worth saving, and returns figures of its own.
    """

    stage: str
    kind: str  # of the model card
    models: Mapping[str, str]
    sections: tuple[str, ...]
    plan: Callable[[Config, Dataset], estimates.Run]
    load: Callable[[Config], Learner]
    save: Callable[[Config, Learner, Dataset, Path], Proof]
    count: Callable[[Learner], dict[str, int]]
    lesson: Callable[[Config, Dataset], Lesson] = _rows_alone
    judge: Callable[[Curve, Path], Figures] = _nothing_more


def train(
    config: Config, method: Method, dataset: Dataset, final: Path, checkpoints: Path
) -> tuple[Curve, str]:
    """Train as `method` says and write the result to `final`; the curve, and what was trained."""
    recorded = conditions_of(checkpoints) if config.options.resume else {}
    config, run = automatic.settled(config, method.plan(config, dataset), recorded)
    same = _conditions(config, method, dataset)
    inputs = [*method.models.values(), *dataset.named.values()]
    with stage_folder(method.stage, final, config, inputs=inputs) as stage:
        resume_from = to_resume(checkpoints, same) if config.options.resume else None
        lesson = method.lesson(config, dataset)  # a teacher may have to speak first, alone
        learner = method.load(config)
        if resume_from is None:
            learns = next(iter(method.models.values()))
            soundness.require_sound(learner.model, dataset.tokenizer, dataset.train, learns)
        resumed = {"resume_from": resume_from, "conditions": same}
        curve = lesson.teach(learner, config, checkpoints, resumed)
        learned = dataset.summary() | lesson.counts
        told = {"system_prompt": dataset.system_prompt}
        del lesson  # and the teacher with it
        with _no_effect_ends(checkpoints, config, run, curve):
            rate, (usual, _) = _rate(config, run), automatic.usual_for(config, run)
            vocabulary = causal_model(learner.model).config.vocab_size
            if not run.through_a_file:  # such a student follows its teacher, whatever the rows cost
                effect.require_learned(curve, vocabulary, run.section, rate, usual)
            figures, counts = method.judge(curve, checkpoints), method.count(learner)
            prove = method.save(config, learner, dataset, stage.folder)
            del learner
            gc.collect()  # the second model must not need memory beside the first
            return_free_blocks()
            proven = prove()
        learns = local_folder(next(iter(method.models.values())))
        write_generation_config(stage.folder, config.generation, learns)
        curve.write(stage.folder)
        stage.metrics.update(proven | counts | learned | told | curve.metrics() | figures)
        base, measured = next(iter(method.models.values())), curve.metrics() | figures
        with decoration("the model card"):
            model_card.write_model_card(
                stage.folder,
                base,
                config,
                measured,
                learned,
                kind=method.kind,
                fingerprint=proven.get(FINGERPRINT),
                base_folder=learns,
            )
    _done_with(checkpoints)
    return curve, _spoken(counts)


def require_resumable(config: Config, method: Method, dataset: Dataset, checkpoints: Path) -> None:
    """Raises SettingsError where --resume would refuse: for a dry run, which resumes nothing."""
    if config.options.resume and found(checkpoints):
        recorded = conditions_of(checkpoints)
        config, _ = automatic.settled(config, method.plan(config, dataset), recorded)
        to_resume(checkpoints, _conditions(config, method, dataset))


def _conditions(config: Config, method: Method, dataset: Dataset) -> dict[str, str]:
    return prechecks.resume_conditions(config, method.sections, method.models, dataset.named)


def adapter(base: str) -> Method:
    """A LoRA adapter on `base`, loaded back onto it to prove that it does what it learned."""
    return Method(
        stage="train_lora",
        kind="adapter",
        models={"base model": base},
        sections=("lora", "training"),
        plan=lambda config, dataset: estimates.adapter_run(config, base, dataset.train),
        load=partial(_load_adapted, base),
        lesson=_rows_with_two_rates,
        save=partial(_save_adapter, base),
        count=_count_adapter,
    )


def whole(base: str) -> Method:
    """All weights of `base`, written as an ordinary model in the type the base is stored in."""
    return Method(
        stage="train_lora",
        kind="whole",
        models={"base model": base},
        sections=("lora", "training"),
        plan=lambda config, dataset: estimates.whole_run(config, base, dataset.train),
        load=partial(_load_whole, base),
        save=partial(save_whole, base),
        count=lambda learner: {"parameters": learner.model.num_parameters()},
    )


def _load_adapted(base: str, config: Config) -> Learner:
    compute = _compute(config)
    loaded = loading.load_model(base, compute)
    seed, quantized = config.training.seed, compute.quantized
    model = lora.attach(loaded, config.lora, seed=seed, quantized=quantized)
    return Learner(model, initialisation.start_of(model, config.lora))


def _compute(config: Config) -> Compute:
    return training_compute(config.model, streamed=config.training.stream_base is True)


def _rows_with_two_rates(config: Config, dataset: Dataset) -> Lesson:
    lesson = _rows_alone(config, dataset)
    return replace(lesson, options=lesson.options | {"loraplus_ratio": config.lora.loraplus_ratio})


def _save_adapter(
    base: str, config: Config, learner: Learner, dataset: Dataset, folder: Path
) -> Proof:
    lora.save_adapter(learner.model, folder, base, learner.start)
    tokenizers.save_tokenizer(dataset.tokenizer, folder, local_folder(base))
    probe = dataset.train[0].input_ids
    # LoftQ's adapter is relative to the exact weights, and a quantised base is loaded again.
    exact = config.lora.initialisation != "loftq"
    trained = lora.next_token_log_probabilities(learner.model, probe) if exact else None

    def prove() -> Figures:
        compute = replace(_compute(config), attention=None)  # as who loads it will
        moved = lora.require_effect(folder, base, probe, trained, compute)
        known = fingerprint(Checkpoint(local_folder(base)))
        return {"adapter_moves_log_probability": moved} | ({FINGERPRINT: known} if known else {})

    return prove


def _count_adapter(learner: Learner) -> dict[str, int]:
    trainable, total = learner.model.get_nb_trainable_parameters()
    return {"trainable_parameters": trainable, "parameters": total}


def _load_whole(base: str, config: Config) -> Learner:
    compute = training_compute(config.model).learning_whole()
    return Learner(loading.load_model(base, compute).float())


def save_whole(
    source: str, config: Config, learner: Learner, dataset: Dataset, folder: Path
) -> Proof:
    """All weights as an ordinary model folder, in the type that `source` is stored in.

    The first process does it; the parts of a model that is shared out come from all of them.
    The proof is that weights differ from those of `source`.
    """
    if first_process() or sharding.weight_parts() > 1:
        origin = local_folder(source)
        stored = Checkpoint(origin).dtype(EMBEDDING)
        loading.save_model(learner.model.to(stored), dataset.tokenizer, folder, origin)
    return partial(changed, source, folder)


def changed(source: str, folder: Path) -> Figures:
    """The share of weights that training changed; raises NoEffect where none did."""
    if not first_process():
        return {}
    share = effect.require_change(local_folder(source), folder, "model")
    return {"changed_weights": round(share, 4)}


def _spoken(counts: Mapping[str, int]) -> str:
    """What was trained, in words."""
    total, trainable = counts["parameters"], counts.get("trainable_parameters")
    if trainable is None:
        return f"all {total:,} parameters"
    return f"{trainable:,} of {total:,} parameters ({trainable / total:.2%})"


@contextmanager
def _no_effect_ends(
    checkpoints: Path, config: Config, run: estimates.Run, curve: Curve
) -> Iterator[None]:
    """A run that changed nothing, or blew up, is at its end: its checkpoints must not be in the
    way."""
    try:
        yield
    except effect.BlownUp:
        _done_with(checkpoints)
        raise
    except effect.NoEffect as idle:
        _done_with(checkpoints)
        rate, usual = _rate(config, run), automatic.usual_for(config, run)
        raise effect.explained(idle, run.section, curve.steps, rate, *usual) from idle


def _rate(config: Config, run: estimates.Run) -> float:
    return getattr(config, run.section).learning_rate


def _done_with(checkpoints: Path) -> None:
    """Only now, with the result under its final name, is a stopped run no longer thinkable."""
    if first_process():
        shutil.rmtree(checkpoints, ignore_errors=True)
