"""One line of benchmarks/gpu.py: a script, a trainer or a way to generate, in its own process.

python benchmarks/gpu_sides.py script NAME CAP WORDS...     CAP: bytes of GPU memory, 0: all
python benchmarks/gpu_sides.py ours|padded|trl|batched|plain MODEL ROWS
"""

import importlib
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import report

LENGTH, BATCH, RANK, NEW_TOKENS = 512, 2, 8, 32
GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if GPU else torch.float32


def script(name: str, cap: str, *words: str) -> None:
    """Runs finetune/NAME.py as its command line would; reports time, speed and the GPU's peak."""
    from slimtune.console import SlimTuneError
    from slimtune.settings import read

    if GPU and int(cap):
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, int(cap) / whole))
    module = importlib.import_module(name)
    config, _ = read(name, module.__doc__, words)
    started = time.monotonic()
    try:
        module.main(config)
    except SlimTuneError as error:
        print(f"error: {error}")
        sys.exit(error.exit_code)
    finally:
        report(seconds=time.monotonic() - started, **_memory(), **_speed(words))


def _speed(words: tuple[str, ...]) -> dict[str, float]:
    """tokens_per_second of the run.json under the output folder."""
    output = Path(words[words.index("--output-dir") + 1])
    records = [output / "run.json", output / "lora_adapter" / "run.json"]
    for record in filter(Path.is_file, records):
        metrics = json.loads(record.read_text(encoding="utf-8"))["metrics"]
        if "tokens_per_second" in metrics:
            return {"tokens_per_second": metrics["tokens_per_second"]}
    return {}


def _memory() -> dict[str, int]:
    if not GPU:
        return {}
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def ours(model: Path, rows: Path) -> None:
    from transformers import TrainingArguments

    from slimtune.training.batches import Sample
    from slimtune.training.trainer import SlimTrainer

    samples = [
        Sample(one["input_ids"], one["labels"], i) for i, one in enumerate(_rows(model, rows))
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, **_arguments())
        _timed(SlimTrainer(model=_adapted(model, ours=True), args=arguments, train_dataset=samples))


def padded(model: Path, rows: Path) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    examples = [one | {"attention_mask": [1] * len(one["input_ids"])} for one in _rows(model, rows)]
    collate = partial(DataCollatorForSeq2Seq(_tokenizer(model)), return_tensors="pt")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, **_arguments())
        _timed(Trainer(_adapted(model), arguments, collate, train_dataset=examples))


def trl(model: Path, rows: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            padding_free=True,
            max_length=None,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            **(_arguments() | {"remove_unused_columns": True}),
        )
        data = Dataset.from_list(_rows(model, rows))
        _timed(
            SFTTrainer(
                model=_adapted(model),
                args=config,
                train_dataset=data,
                processing_class=_tokenizer(model),
            )
        )


def batched(model: Path, rows: Path) -> None:
    from slimtune.evaluation.generation import generate

    loaded, tokenizer = _base(model), _tokenizer(model)
    prompts = [one["input_ids"][:64] for one in _rows(model, rows)]
    _clocked(
        lambda: sum(
            answer.tokens
            for _, answer in generate(loaded, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
        )
    )


def plain(model: Path, rows: Path) -> None:
    loaded = _base(model)

    def loop() -> int:
        count = 0
        for one in _rows(model, rows):
            prompt = torch.tensor([one["input_ids"][:64]], device=loaded.device)
            mask = torch.ones_like(prompt)
            found = loaded.generate(
                prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
            )
            count += found.shape[1] - prompt.shape[1]
        return count

    _clocked(loop)


def _clocked(work: Any) -> None:
    started = time.monotonic()
    tokens = work()
    report(tokens=tokens, seconds=time.monotonic() - started, **_memory())


def _timed(trainer: Any) -> None:
    tokens = sum(
        len(one["input_ids"] if isinstance(one, dict) else one.input_ids)
        for one in trainer.train_dataset
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report(tokens=tokens, seconds=seconds, loss=sum(losses) / len(losses), **_memory())


def _arguments() -> dict[str, Any]:
    return {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": not GPU,
        "bf16": GPU,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 0,
    }


def _base(model: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    device = {"": 0 if GPU else "cpu"}
    return AutoModelForCausalLM.from_pretrained(model, dtype=DTYPE, device_map=device, **options)


def _adapted(model: Path, ours: bool = False) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    options = {}
    if ours:
        from slimtune.training import attention

        options["attn_implementation"] = attention.register("cuda" if GPU else "cpu", DTYPE)
    base = _base(model, **options)
    set_seed(0)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


def _tokenizer(model: Path) -> Any:
    from slimtune.models import tokenizers

    return tokenizers.load(model)


def _rows(model: Path, file: Path) -> list[dict[str, list[int]]]:
    """Token ids and labels of the rows under Llama-2's template, shortened to LENGTH."""
    from slimtune import prompts
    from slimtune.data.rows import read_rows

    tokenizer, template = _tokenizer(model), prompts.template("llama2")
    found = [
        prompts.encode(tokenizer, row["messages"], template, LENGTH) for row in read_rows(file)
    ]
    return [{name: one[name] for name in ("input_ids", "labels")} for one in found if one]


SIDES = {side.__name__: side for side in (ours, padded, trl, batched, plain)}

if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    script(*words) if kind == "script" else SIDES[kind](*map(Path, words))
