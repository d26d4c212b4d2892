"""The two stages that train, as the scripts run them: inputs in, a finished folder out."""

from collections.abc import Sequence
from pathlib import Path

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.models import loading, tokenizers
from slimtune.models.hub import resolve
from slimtune.training import attention, distillation, lora
from slimtune.training.fitting import Curve, fit
from slimtune.training.reading import Lessons


def train_adapter(
    config: Config, base: str, lessons: Lessons, final: Path, checkpoints: Path
) -> tuple[Curve, str]:
    """Train a LoRA adapter on `base` and write it to `final`; the curve, and what was trained."""
    quantized = config.model.use_quantization
    with stage_folder("train_lora", final, config, inputs=[base, *lessons.files]) as stage:
        loaded = loading.load(
            base,
            device=config.model.device,
            dtype=config.model.dtype,
            quantize=quantized,
            attn_implementation=attention.register(),
        )
        seed = config.training.seed
        model = lora.attach(loaded, config.lora, seed=seed, quantized=quantized)
        trainable, total = model.get_nb_trainable_parameters()
        curve = fit(
            model,
            lessons.train,
            lessons.validation,
            config.training,
            checkpoints,
            resume=config.options.resume,
        )
        lora.save(model, stage.folder, base)
        tokenizers.save(lessons.tokenizer, stage.folder, resolve(base))
        curve.write(stage.folder)
        stage.metrics.update(trainable_parameters=trainable, parameters=total)
        stage.metrics.update(lessons.summary() | curve.metrics())
    return curve, f"{trainable:,} of {total:,} parameters ({trainable / total:.2%})"


def distil_student(
    config: Config,
    student: str,
    lessons: Lessons,
    text: Sequence[str],
    final: Path,
    checkpoints: Path,
) -> Curve:
    """Teach `student` what the teacher says and write it to `final`."""
    teacher = config.distillation.teacher_model
    inputs = [student, teacher, *lessons.files]
    with stage_folder("knowledge_distillation", final, config, inputs=inputs) as stage:
        model, curve = distillation.distil(
            teacher,
            student,
            lessons,
            text,
            config.distillation,
            config.training,
            checkpoints=checkpoints,
            device=config.model.device,
            dtype=config.model.dtype,
            resume=config.options.resume,
        )
        loading.save(model, lessons.tokenizer, stage.folder, resolve(student))
        curve.write(stage.folder)
        stage.metrics.update(lessons.summary() | {"text_passages": len(text)} | curve.metrics())
    return curve
