"""The stages that train, as the scripts run them: inputs in, a finished folder out."""

import gc
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.console import first_process
from slimtune.models import loading, tokenizers
from slimtune.models.checkpoints import EMBEDDING, Checkpoint
from slimtune.models.folders import local_folder
from slimtune.report import model_card
from slimtune.training import attention, estimates, initialisation, lora, prechecks, sharding
from slimtune.training.checkpoints import to_resume
from slimtune.training.curve import Curve
from slimtune.training.dataset import Dataset
from slimtune.training.fitting import fit

_log = logging.getLogger(__name__)

# Parameters of a model, and the step size for all of its weights below that.
_RATES = ((1e8, 1e-3), (1e9, 1e-4), (float("inf"), 2e-5))


def train_adapter(
    config: Config, base: str, dataset: Dataset, final: Path, checkpoints: Path
) -> tuple[Curve, str]:
    """Train a LoRA adapter on `base` and write it to `final`; the curve, and what was trained."""
    quantization = config.model.quantization
    same = prechecks.resume_conditions(
        config, ("lora", "training"), {"base model": base}, dataset.named
    )
    config = estimates.with_automatic_batch(
        config, estimates.adapter_run(config, base, dataset.train)
    )
    with stage_folder("train_lora", final, config, inputs=[base, *dataset.files]) as stage:
        resume_from = to_resume(checkpoints, same) if config.options.resume else None
        loaded = _load(config, base, quantization=quantization)
        seed = config.training.seed
        model = lora.attach(loaded, config.lora, seed=seed, quantized=quantization != "none")
        start = initialisation.start_of(model, config.lora)
        trainable, total = model.get_nb_trainable_parameters()
        curve = fit(
            model,
            dataset.train,
            dataset.validation,
            config.training,
            checkpoints,
            resume_from=resume_from,
            conditions=same,
            loraplus_ratio=config.lora.loraplus_ratio,
        )
        with _no_effect_ends(checkpoints):
            lora.save_adapter(model, stage.folder, base, start)
        probe = dataset.train[0].input_ids
        exact = config.lora.initialisation != "loftq"
        trained = lora.next_token_log_probabilities(model, probe) if exact else None
        del model, loaded, start
        gc.collect()  # the second model must not need memory beside the first
        compute = {"device": config.model.device, "dtype": config.model.dtype}
        with _no_effect_ends(checkpoints):
            moved = lora.require_effect(
                *(stage.folder, base, probe, trained),
                quantization=quantization,
                shares=sharding.weight_parts(),
                **compute,
            )
        stage.metrics.update(adapter_moves_log_probability=moved)
        tokenizers.save_tokenizer(dataset.tokenizer, stage.folder, local_folder(base))
        curve.write(stage.folder)
        model_card.write_model_card(stage.folder, base, config, curve, dataset.summary())
        stage.metrics.update(trainable_parameters=trainable, parameters=total)
        stage.metrics.update(dataset.summary() | curve.metrics())
    done_with(checkpoints)
    return curve, f"{trainable:,} of {total:,} parameters ({trainable / total:.2%})"


def train_whole(
    config: Config, base: str, dataset: Dataset, final: Path, checkpoints: Path
) -> tuple[Curve, str]:
    """Train all weights of `base` and write a whole model to `final`; as `train_adapter`."""
    same = prechecks.resume_conditions(
        config, ("lora", "training"), {"base model": base}, dataset.named
    )
    config = estimates.with_automatic_batch(
        config, estimates.whole_run(config, base, dataset.train)
    )
    with stage_folder("train_lora", final, config, inputs=[base, *dataset.files]) as stage:
        resume_from = to_resume(checkpoints, same) if config.options.resume else None
        model = _load(config, base).float()
        _advise(config.training.learning_rate, model.num_parameters())
        curve = fit(
            model,
            dataset.train,
            dataset.validation,
            config.training,
            checkpoints,
            resume_from=resume_from,
            conditions=same,
        )
        stored = Checkpoint(local_folder(base)).dtype(EMBEDDING)
        loading.save_model(model.to(stored), dataset.tokenizer, stage.folder, local_folder(base))
        curve.write(stage.folder)
        model_card.write_model_card(
            stage.folder, base, config, curve, dataset.summary(), kind="whole"
        )
        stage.metrics.update(parameters=model.num_parameters())
        stage.metrics.update(dataset.summary() | curve.metrics())
    done_with(checkpoints)
    return curve, f"all {model.num_parameters():,} parameters"


def _advise(rate: float, parameters: int) -> None:
    """A word where the step size is an adapter's: whole models want a tenth of it."""
    fitting = next(value for size, value in _RATES if parameters < size)
    if rate > fitting:
        _log.warning(
            "caution: --learning-rate %g is an adapter's; for all weights of a model of this size "
            "%g is usual",
            rate,
            fitting,
        )


def _load(config: Config, base: str, quantization: str = "none") -> PreTrainedModel:
    """The base with attention for padding-free rows."""
    return loading.load_model(
        base,
        device=config.model.device,
        dtype=config.model.dtype,
        quantization=quantization,
        attn_implementation=attention.register(
            loading.choose_device(config.model.device).type,
            loading.choose_dtype(config.model.device, config.model.dtype),
        ),
        shares=sharding.weight_parts(),
    )


@contextmanager
def _no_effect_ends(checkpoints: Path) -> Iterator[None]:
    """A run that has changed nothing is at its end: its checkpoints must not be in the way."""
    try:
        yield
    except lora.NoEffect:
        done_with(checkpoints)
        raise


def done_with(checkpoints: Path) -> None:
    """Only now, with the result under its final name, is a stopped run no longer thinkable."""
    if first_process():
        shutil.rmtree(checkpoints, ignore_errors=True)
