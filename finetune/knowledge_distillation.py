"""Let a large model teach a small one: the pruned student wins back what pruning cost.

    python finetune/knowledge_distillation.py
    python finetune/knowledge_distillation.py --teacher-model models/finetuned/merged_model \\
        --student-model models/pruned --epochs 3
    python finetune/knowledge_distillation.py --text-data null       # rows only
    python finetune/knowledge_distillation.py --mode sequence        # a teacher of another family
    python finetune/knowledge_distillation.py --quantised-student Q4_K_M \\
        --student-model models/finetuned/merged_model
    python finetune/knowledge_distillation.py --quantised-student Q4_K_M --student layers \\
        --student-model models/finetuned/merged_model
    python finetune/knowledge_distillation.py --teacher-model model-Q8_0.gguf    # or ollama:NAME

reads   teacher (a folder, a GGUF file, or a server that is asked), student, prepared rows, plain
        text if named
writes  CACHE_DIR (what the teacher said; it is never in memory with the student),
        OUTPUT_DIR with the student, metrics.jsonl and loss.png; with --quantised-student its GGUF
"""

from slimtune.artifacts import refuse_finished, refuse_inputs, require, require_writable
from slimtune.config import Config
from slimtune.console import would_write, wrote


def main(config: Config) -> None:
    from slimtune.evaluation.following import comparison_command
    from slimtune.models.served_decoding import settled
    from slimtune.quantised import layer_stage
    from slimtune.quantised import student as quantised
    from slimtune.training import distillation_stage, prechecks, teachers, written_answers
    from slimtune.training.auto_teacher import with_teacher
    from slimtune.training.dataset import dataset_of
    from slimtune.training.distillation import passages_of, require_teachable
    from slimtune.training.pipeline import require_resumable, train

    student, final = config.distillation.student_model, config.distillation.output_dir
    checkpoints = final.with_name(f"{final.name}_checkpoints")
    through_a_file = config.distillation.quantised_student is not None
    if through_a_file:
        config = quantised.settled(config, student)
    config = with_teacher(config, student)
    settings, learned = config.distillation, config.training
    rows = [learned.train_data, learned.val_data, learned.replay_data]
    read = [student, settings.teacher_model, settings.text_data, *rows]
    refuse_inputs([final, checkpoints], read)
    refuse_finished(final, config)
    require_writable(settings.cache_dir, config)
    prechecks.precheck(config, checkpoints)
    require(config.training.train_data)
    config = settled(config, student, settings.teacher_model)
    dataset = dataset_of(config, student)
    require_teachable(config, student)
    if through_a_file:
        quantised.require_possible(config, student)
    text, stage = passages_of(config), quantised if through_a_file else distillation_stage
    by_layers = config.distillation.student == "layers"
    if config.options.dry_run:
        if by_layers:
            stage = layer_stage
            layer_stage.require_resumable(config, student, dataset, checkpoints)
        elif config.distillation.mode != "sequence":  # whose rows the teacher has yet to write
            method = stage.student(config, student, text)
            require_resumable(config, method, dataset, checkpoints)
        plan = stage.plan_distillation(config, student, dataset, text)
        would_write(final, estimates=dataset.summary() | plan)
        return

    if config.distillation.mode == "sequence":
        with teachers.first_process_first(config):
            config = written_answers.answered(config)
        dataset = dataset_of(config, student)
    if by_layers:
        numbers = layer_stage.distil(config, student, dataset, text, checkpoints)
    else:
        method = stage.student(config, student, text)
        curve, _ = train(config, method, dataset, final, checkpoints)
        numbers = {"loss": curve.summary(), "speed": curve.speed()}
        numbers |= stage.figures(config, student, curve)
    made = [final, quantised.file_of(config, student)] if through_a_file else [final]
    wrote(*made, numbers=numbers, next=comparison_command(config, student, student, made[-1]))


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
