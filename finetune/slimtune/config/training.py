"""Adapters, and how they and students are trained."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from slimtune.config.fields import Positive, Section, Share, setting


class Lora(Section):
    """The adapter: small matrices beside the frozen weights (LoRA, arXiv:2106.09685)."""

    output_dir: Path = setting(
        Path("models/finetuned"), "Folder for lora_adapter, checkpoints and merged_model."
    )
    rank: Positive = setting(
        8, "Rank of the matrices: higher learns more and costs memory.", flag="lora-r"
    )
    alpha: Positive = setting(
        16, "Scale: the update is multiplied by alpha / rank.", flag="lora-alpha"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.0,
        "Share of adapter inputs dropped in training; 0.05 helps small data.",
        flag="lora-dropout",
    )
    target_modules: list[str] = setting(
        ["all-linear"],
        "Layers that get an adapter: all-linear, or names such as q_proj, v_proj.",
        flag="lora-target-modules",
    )


class Training(Section):
    """How adapters and students are trained: rows, steps, memory."""

    train_data: Path = setting(
        Path("data/finetune/train_train.jsonl"), "Prepared rows to learn from."
    )
    val_data: Path | None = setting(
        None,
        "Prepared rows for the validation loss; null: the NAME_validation.jsonl beside the\n"
        "training rows, when it is there. With it the best checkpoint is kept.",
    )
    epochs: Annotated[float, Field(gt=0)] = setting(2, "Times through the training rows.")
    batch_size: Positive = setting(
        16, "Rows per step and device. Halve it (and double the accumulation) when memory is short."
    )
    gradient_accumulation_steps: Positive = setting(
        1, "Batches summed before one update: a larger effective batch at the same memory."
    )
    learning_rate: Annotated[float, Field(gt=0)] = setting(
        4e-3, "Step size of the adapter. 4e-3 suits the sample model; 2e-4 is usual for 7B."
    )
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = setting(
        "cosine", "How the step size falls over the run."
    )
    warmup_ratio: Share = setting(0.05, "Share of the steps over which the step size rises.")
    weight_decay: Annotated[float, Field(ge=0)] = setting(0.0, "AdamW's weight decay.")
    max_grad_norm: Annotated[float, Field(gt=0)] = setting(
        1.0, "Gradients are clipped to this norm."
    )
    max_length: Annotated[int, Field(ge=16)] = setting(
        512,
        "Longest row in tokens; a longer one loses the start of its prompt, never its answer.\n"
        "Memory grows with it.",
    )
    activation_checkpointing: bool = setting(
        False, "true saves most of the activation memory and costs about 30 % speed."
    )
    evaluations_per_epoch: Positive = setting(2, "Validations (and checkpoints) per epoch.")
    early_stopping_patience: Positive = setting(
        3, "Validations without a better loss after which training stops."
    )
    max_truncated_share: Share = setting(
        0.1, "Training refuses to start when more than this share of rows must be cut."
    )
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "Where losses are sent as well; metrics.jsonl and loss.png are written anyway."
    )
    seed: int = setting(42, "Seed of adapter and row order.")
