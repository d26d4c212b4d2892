"""One line of benchmarks/gpu.py: a script, a trainer or a way to generate, in its own process.

python benchmarks/gpu_sides.py script NAME CAP WORDS...     CAP: bytes of the card, 0: all
python benchmarks/gpu_sides.py ours|padded|trl|batched|plain MODEL ROWS LENGTH
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import report

from slimtune.prompts import IGNORED

BATCH, RANK = 8, 8
PROMPTS, NEW_TOKENS = 64, 32
GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if GPU else torch.float32
Row = dict[str, list[int]]


def script(name: str, cap: str, *words: str) -> None:
    """finetune/NAME.py as its command line runs it, --dry-run first; time, speed and memory."""
    _hold(int(cap))
    if code := _exit_code(name, *words, "--dry-run"):
        sys.exit(code)
    started = time.monotonic()
    if code := _exit_code(name, *words):
        sys.exit(code)
    report(seconds=time.monotonic() - started, **_memory(), **_speed(words))


def _exit_code(name: str, *words: str) -> int:
    from slimtune.script import run

    module = importlib.import_module(name)
    sys.argv = [f"{name}.py", *words]
    try:
        run(module.main, module.__doc__)
    except SystemExit as ended:
        return ended.code


def _hold(cap: int) -> None:
    """Let this process have as much as a card of `cap` bytes would leave it beside the context."""
    if GPU and cap:
        free, total = torch.cuda.mem_get_info()
        context = total - free
        torch.cuda.set_per_process_memory_fraction(min(1.0, (cap - context) / total))


def _memory() -> dict[str, int]:
    """Peaks of torch's allocator, and what the card lacks in all where nobody else is on it."""
    if not GPU:
        return {}
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    reserved = torch.cuda.max_memory_reserved()
    allocated = torch.cuda.max_memory_allocated()
    return {"allocated": allocated, "reserved": reserved, "card": reserved + context}


def _speed(words: tuple[str, ...]) -> dict[str, float]:
    """Tokens a second of the run.json under the output folder, nothing for what trains nothing."""
    output = Path(words[words.index("--output-dir") + 1])
    record = next(output.rglob("run.json"))
    metrics = json.loads(record.read_text(encoding="utf-8"))["metrics"]
    return {"speed": metrics["tokens_per_second"]} if "tokens_per_second" in metrics else {}


def ours(model: Path, rows: Path, length: int) -> None:
    from transformers import TrainingArguments

    from slimtune.training import attention
    from slimtune.training.batches import Sample
    from slimtune.training.trainer import SlimTrainer

    found = _rows(model, rows, length)
    name = attention.register("cuda" if GPU else "cpu", DTYPE)
    samples = [Sample(row["input_ids"], row["labels"], i) for i, row in enumerate(found)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, **_arguments())
        adapted = _adapted(model, attn_implementation=name)
        _trained(SlimTrainer(model=adapted, args=arguments, train_dataset=samples), found)


def padded(model: Path, rows: Path, length: int) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    found = _rows(model, rows, length)
    examples = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in found]
    collate = partial(DataCollatorForSeq2Seq(_tokenizer(model)), return_tensors="pt")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, **_arguments())
        _trained(Trainer(_adapted(model), arguments, collate, train_dataset=examples), found)


def trl(model: Path, rows: Path, length: int) -> None:
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
        found = _rows(model, rows, length)
        trainer = SFTTrainer(
            model=_adapted(model),
            args=config,
            train_dataset=Dataset.from_list(found),
            processing_class=_tokenizer(model),
        )
        _trained(trainer, found)


def batched(model: Path, rows: Path, length: int) -> None:
    from slimtune.inference.decoding import Decoding
    from slimtune.inference.generation import generate

    loaded, tokenizer = _base(model), _tokenizer(model)

    def answers(prompts: list[list[int]], new_tokens: int) -> int:
        found = generate(loaded, tokenizer, prompts, Decoding(new_tokens))
        return sum(answer.tokens for _, answer in found)

    _answered(answers, _rows(model, rows, length))


def plain(model: Path, rows: Path, length: int) -> None:
    loaded = _base(model)

    def answers(prompts: list[list[int]], new_tokens: int) -> int:
        return sum(_answer(loaded, prompt, new_tokens) for prompt in prompts)

    _answered(answers, _rows(model, rows, length))


def _answer(model: Any, prompt: list[int], new_tokens: int) -> int:
    ids = torch.tensor([prompt], device=model.device)
    mask = torch.ones_like(ids)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
    return found.shape[1] - len(prompt)


def _answered(answers: Callable[[list[list[int]], int], int], rows: list[Row]) -> None:
    """Reports new tokens a second; a first short answer loads the kernels."""
    prompts = [
        [token for token, label in zip(*row.values(), strict=True) if label == IGNORED]
        for row in rows[:PROMPTS]
    ]
    answers(prompts[:1], 2)
    started = _now()
    tokens = answers(prompts, NEW_TOKENS)
    report(speed=tokens / (_now() - started), **_memory())


def _trained(trainer: Any, rows: list[Row]) -> None:
    """Reports all steps but the first, which loads kernels and makes the optimizer."""
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(_now())

    trainer.add_callback(Clock())
    trainer.train()
    seconds = marks[-1] - marks[0]
    speed = sum(len(row["input_ids"]) for row in rows[BATCH:]) / seconds
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report(speed=speed, seconds=seconds, losses=losses, **_memory())


def _now() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.monotonic()


def _arguments() -> dict[str, Any]:
    return {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",  # the first step's rows are not counted
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


def _adapted(model: Path, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    base = _base(model, **options)
    set_seed(0)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


def _tokenizer(model: Path) -> Any:
    from slimtune.models import tokenizers

    return tokenizers.load_tokenizer(model)


def _rows(model: Path, file: Path, length: int) -> list[Row]:
    """Token ids and labels of the rows under Llama-2's template, in at most `length`."""
    from slimtune import prompts
    from slimtune.data.rows import read_rows

    tokenizer, template = _tokenizer(model), prompts.template("llama2")
    found = [
        prompts.encode(tokenizer, row["messages"], template, length) for row in read_rows(file)
    ]
    return [{name: one[name] for name in ("input_ids", "labels")} for one in found if one]


SIDES = {side.__name__: side for side in (ours, padded, trl, batched, plain)}

if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "script":
        script(*words)
    else:
        model, rows, length = words
        SIDES[kind](Path(model), Path(rows), int(length))
