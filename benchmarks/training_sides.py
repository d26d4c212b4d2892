"""One side of benchmarks/training.py, run by the python that has its packages.

python benchmarks/training_sides.py SIDE FOLDER
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measuring import report

BATCH = 4
RANK, ALPHA = 8, 16
LEARNING_RATE = 1e-3
ARGUMENTS = {
    "num_train_epochs": 1,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "seed": 0,
}


def ours(folder: Path, dtype: str = "float32") -> None:
    from slimtune.config import Config, Lora
    from slimtune.machine.process import leave_out_unused

    leave_out_unused(Config())  # as every script does before it imports anything heavy
    from transformers import TrainingArguments

    from slimtune.models import loading
    from slimtune.training import lora
    from slimtune.training.attention import training_compute
    from slimtune.training.batches import Sample
    from slimtune.training.trainer import SlimTrainer

    compute = training_compute(Config().model.model_copy(update={"device": "cpu", "dtype": dtype}))
    base = loading.load_model(folder / "model", compute)
    model = lora.attach(base, Lora(rank=RANK, alpha=ALPHA), seed=0)
    samples = [Sample(row["input_ids"], row["labels"], i) for i, row in enumerate(_rows(folder))]
    arguments = TrainingArguments(output_dir=str(folder / "ours"), **_arguments(folder))
    _timed(SlimTrainer(model=model, args=arguments, train_dataset=samples))


def ours_bfloat16(folder: Path) -> None:
    """Ours as auto has it for models that are not small, on a CPU with AVX512-BF16."""
    ours(folder, "bfloat16")


def padded(folder: Path) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = _tokenizer(folder)
    arguments = TrainingArguments(output_dir=str(folder / "padded"), **_arguments(folder))
    collate = partial(DataCollatorForSeq2Seq(tokenizer), return_tensors="pt")
    trainer = Trainer(_adapted(folder), arguments, collate, train_dataset=_padded_rows(folder))
    _timed(trainer)


def trl(folder: Path, **options: Any) -> None:
    """As it comes: activation checkpointing is its default."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = _arguments(folder) | {"remove_unused_columns": True}
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        padding_free=True,
        max_length=None,
        bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **options,
        **arguments,
    )
    trainer = SFTTrainer(
        model=_adapted(folder),
        args=config,
        train_dataset=Dataset.from_list(_rows(folder)),
        processing_class=_tokenizer(folder),
    )
    _timed(trainer)


def trl_plain(folder: Path) -> None:
    trl(folder, gradient_checkpointing=False)


def llamafactory(folder: Path) -> None:
    """Its own pipeline from text on; neat packing fills blocks of a batch's length."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    import transformers
    from llamafactory.train.tuner import run_exp

    train = transformers.Trainer.train

    def timed(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        return _clocked(trainer, lambda: train(trainer, *args, **kwargs))

    transformers.Trainer.train = timed
    longest = max(len(row["input_ids"]) for row in _rows(folder))
    run_exp(
        {
            "model_name_or_path": str(folder / "model"),
            "dataset_dir": str(folder),
            "dataset": "rows",
            "template": "llama2",
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": RANK,
            "lora_alpha": ALPHA,
            "neat_packing": True,
            "cutoff_len": -(-longest // 8) * 8 * 2,
            "output_dir": str(folder / "llamafactory"),
            "infer_dtype": "float32",
            **ARGUMENTS,
            "per_device_train_batch_size": 1,
            "report_to": "none",
        }
    )


def _arguments(folder: Path) -> dict[str, Any]:
    """Those of all sides; rows of a task come in batches of their own size."""
    told = folder / "batch.json"
    size = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else BATCH
    return ARGUMENTS | {"per_device_train_batch_size": size}


def _adapted(folder: Path) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    set_seed(0)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def _rows(folder: Path) -> list[dict[str, list[int]]]:
    return json.loads((folder / "rows.json").read_text(encoding="utf-8"))


def _padded_rows(folder: Path) -> list[dict[str, list[int]]]:
    return [row | {"attention_mask": [1] * len(row["input_ids"])} for row in _rows(folder)]


def _timed(trainer: Any) -> None:
    _clocked(trainer, trainer.train)


def _clocked(trainer: Any, train: Callable[[], Any]) -> Any:
    """Runs `train` and reports its CPU seconds and the loss of every step."""
    started = time.process_time()
    result = train()
    seconds = time.process_time() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report(cpu=seconds, steps=trainer.state.global_step, losses=losses)
    return result


_ALL = (ours, ours_bfloat16, padded, llamafactory, trl, trl_plain)
SIDES = {side.__name__: side for side in _ALL}

if __name__ == "__main__":
    SIDES[sys.argv[1]](Path(sys.argv[2]))
