"""What other tools call our settings: who comes from them is answered with our names.

Names are those of transformers' TrainingArguments, TRL, PEFT, Unsloth, LLaMA-Factory, mlx-lm and
llama.cpp's converter, as their documentation lists them; `-` and `_` count as the same.
"""

# Theirs: the settings that it may mean, the first one that a script has counts; or our flag.
_OURS = {
    "adapter": ("evaluation.lora_model", "gguf.lora_model"),
    "adapter-name-or-path": ("evaluation.lora_model", "gguf.lora_model"),
    "adapter-path": ("evaluation.lora_model", "gguf.lora_model", "lora.output_dir"),
    "bf16": ("model.dtype",),
    "bs": ("training.batch_size",),
    "cutoff-len": ("training.max_length",),
    "data": ("training.train_data", "data.input"),
    "data-path": ("training.train_data", "data.input"),
    "dataset": ("data.input", "training.train_data"),
    "dataset-name": ("data.input", "training.train_data"),
    "dataset-path": ("data.input", "training.train_data"),
    "eval-dataset": ("evaluation.test_data", "training.val_data"),
    "export-dir": ("evaluation.merged_dir", "gguf.output_dir"),
    "finetuning-type": ("lora.method",),
    "fine-tune-type": ("lora.method",),
    "fp16": ("model.dtype",),
    "gradient-checkpointing": ("training.activation_checkpointing",),
    "init-lora-weights": ("lora.initialisation",),
    "load-in-4bit": ("model.quantization",),
    "lora-rank": ("lora.rank",),
    "lora-target": ("lora.target_modules",),
    "loraplus-lr-ratio": ("lora.loraplus_ratio",),
    "lr": ("distillation.learning_rate", "training.learning_rate"),
    "lr-scheduler-type": ("training.lr_scheduler",),
    "max-seq-len": ("training.max_length",),
    "max-seq-length": ("training.max_length",),
    "max-tokens": ("generation.max_new_tokens",),
    "micro-batch-size": ("training.batch_size",),
    "min-prob": ("generation.min_p",),
    "model": ("model.base_model", "gguf.model_path", "pruning.model_path")
    + ("distillation.student_model",),
    "model-name-or-path": ("model.base_model", "gguf.model_path", "pruning.model_path")
    + ("distillation.student_model",),
    "neftune-noise-alpha": ("training.neftune_alpha",),
    "num-epochs": ("distillation.epochs", "training.epochs"),
    "num-predict": ("generation.max_new_tokens",),
    "num-train-epochs": ("distillation.epochs", "training.epochs"),
    "optim": ("training.optimizer",),
    "outfile": ("gguf.model_name",),
    "outtype": ("gguf.quantization",),
    "overwrite-output-dir": ("--overwrite",),
    "per-device-batch-size": ("training.batch_size",),
    "per-device-eval-batch-size": ("evaluation.token_budget", "training.batch_size"),
    "per-device-train-batch-size": ("training.batch_size",),
    "quantization-bit": ("model.quantization",),
    "r": ("lora.rank",),
    "rank": ("lora.rank",),
    "repetition-penalty": ("generation.repeat_penalty",),
    "resume-from-checkpoint": ("--resume",),
    "system": ("model.system_prompt",),
    "target-modules": ("lora.target_modules",),
    "template": ("model.prompt_template",),
    "temp": ("generation.temperature",),
    "teacher": ("distillation.teacher_model",),
    "train-file": ("training.train_data", "data.input"),
    "use-dora": ("lora.dora",),
    "use-rslora": ("lora.rslora",),
    "val-size": ("data.validation_ratio",),
    "validation-file": ("training.val_data", "data.validation_input"),
    "warmup-steps": ("training.warmup_ratio",),
}


def ours(theirs: str) -> tuple[str, ...]:
    """The settings ("section.name") and flags ("--overwrite") that another tool's name may mean."""
    return _OURS.get(theirs.lower().replace("_", "-"), ())
