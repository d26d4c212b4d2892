"""Fine-tune a base model with LoRA: small matrices learn, the base stays as it is.

    python finetune/train_lora.py
    python finetune/train_lora.py --base-model meta-llama/Llama-2-7b-chat-hf \\
        --train-data data/finetune/train_train.jsonl --output-dir models/finetuned \\
        --epochs 3 --batch-size 4 --learning-rate 2e-4 --lora-r 8 --lora-alpha 16
    python finetune/train_lora.py --use-quantization          # 4-bit base, a quarter of the memory
    python finetune/train_lora.py --method full               # all weights, small models
    python finetune/train_lora.py --dry-run                   # what it would take

reads   the base model, prepared rows
writes  OUTPUT_DIR/lora_adapter (or full_model) with metrics.jsonl and loss.png; checkpoints
"""

from slimtune.artifacts import refuse_finished, refuse_inputs, require
from slimtune.config import Config
from slimtune.console import would_write, wrote
from slimtune.settings.commands import next_command


def main(config: Config) -> None:
    base, whole = config.model.base_model, config.lora.method == "full"
    final = config.lora.output_dir / ("full_model" if whole else "lora_adapter")
    checkpoints = config.lora.output_dir / "checkpoints"
    rows = [config.training.train_data, config.training.val_data, config.training.replay_data]
    refuse_inputs([final, checkpoints], [base, *rows])
    refuse_finished(final, config)

    # Five seconds of torch, which what stands above is told without.
    from slimtune.models.served_decoding import settled
    from slimtune.training import lora, pipeline, prechecks
    from slimtune.training.dataset import dataset_of
    from slimtune.training.timing import dry_run

    prechecks.precheck(config, checkpoints)
    lora.require_choices(config)
    require(base)
    require(config.training.train_data)
    config = settled(config, base)
    dataset = dataset_of(config, base)
    method = pipeline.whole(base) if whole else pipeline.adapter(base)
    if config.options.dry_run:
        pipeline.require_resumable(config, method, dataset, checkpoints)
        run = method.plan(config, dataset)
        would_write(final, estimates=dataset.summary() | dry_run(config, base, run, dataset.train))
        return

    adapter, models = (None, {"evaluation.models": [final]}) if whole else (final, {})
    compared = {"evaluation.lora_model": adapter} | models
    curve, trained = pipeline.train(config, method, dataset, final, checkpoints)
    wrote(
        final,
        numbers={"trained": trained, "loss": curve.summary(), "speed": curve.speed()},
        next=next_command("evaluate_model", config, {"model.base_model": base} | compared),
    )


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
