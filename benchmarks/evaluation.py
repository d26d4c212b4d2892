"""Evaluation beside a plain loop: the same answers in a third of the time, ROUGE-L in no time.

    python benchmarks/evaluation.py            # 200 prompts, hidden 512 x 6 layers, 1000 pairs
    python benchmarks/evaluation.py --small    # a quick try
    python benchmarks/evaluation.py --model FOLDER   # rows of a real task, such as Banking77's

The peer answers one prompt after another with transformers' own `generate`; both are greedy, fp32,
one thread. ROUGE-L is compared with rouge-score, on pairs of about 300 characters (letters, since
rouge-score knows no others); where it is not installed, a line says so.

With `--model` the rows of `--rows` are scored and answered by that model, in float32 with every row
read whole, as evaluation once did it, and as it does it now: beginnings read once, products in
bfloat16 where the processor has them, and rows whose answer scoring has told not answered again.
One thread; of `--rounds` in turn the fastest counts. A model that was fine-tuned on such rows says
its reference often, another seldom: give the one that you ask about.
"""

import argparse
import importlib.util
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import evaluation_task as task
import prefixes
from measuring import SHARED_DATA, machine, measure, report, table

SHAPES = {False: (512, 6, 200, 64, 1000), True: (128, 2, 24, 24, 100)}
CPU_FACTOR, ROUGE_SECONDS = 3.0, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_PLAIN)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--model", type=Path, help="a folder; its own rows in place of random ones")
    parser.add_argument("--rows", type=Path, default=SHARED_DATA / "banking77" / "test.csv")
    parser.add_argument("--columns", default="question=text,answer=category")
    parser.add_argument("--system-prompt", default=task.SYSTEM)
    parser.add_argument("--count", type=int, default=128, help="rows, at even distances")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        SIDES[options.side](options.model, *SHAPES[options.small][2:])
        return
    print(machine())
    if options.model:
        _compare_task(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_model(Path(folder), *SHAPES[options.small][:2])
        _compare_generation(Path(folder), options.small)
    _compare_rouge(options.small)


_PLAIN = argparse.RawDescriptionHelpFormatter


def _compare_generation(folder: Path, small: bool) -> None:
    costs = {side: _run(side, small, folder) for side in ("slimtune", "generate")}
    ours, theirs = (costs[side].results for side in ("slimtune", "generate"))
    equal = sum(a == b for a, b in zip(ours["answers"], theirs["answers"], strict=True))
    hidden, layers, prompts, tokens, _ = SHAPES[small]
    table(
        f"{prompts} prompts, {tokens} tokens each, hidden {hidden} x {layers} layers, fp32",
        ["side", "generation CPU s", "whole process CPU s", "peak MB"],
        [[name, cost.results["cpu"], cost.cpu, cost.megabytes] for name, cost in costs.items()],
    )
    print(f"equal answers: {equal} of {prompts} (bar: all)")
    factor = theirs["cpu"] / ours["cpu"]
    print(f"CPU of the plain loop by ours: {factor:.1f} (bar: {CPU_FACTOR:.0f})")


def _compare_task(options: argparse.Namespace) -> None:
    """Rows of a real task answered and scored: all of the evaluation's own path."""
    import torch

    from slimtune.inference.engines import TransformersEngine

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples, tokenizer = task.samples(options, Path(folder))
    kinds = {"float32, rows whole": ("float32", False), "now": ("auto", True)}
    models = {name: task.loaded(options.model, dtype) for name, (dtype, _) in kinds.items()}
    tokens = sum(len(one.input_ids) for one in samples)
    best = {what: dict.fromkeys(kinds, math.inf) for what in ("scored", "answered")}
    answers: dict[str, list[str]] = {}
    for _ in range(options.rounds):
        for name, (_, ours) in kinds.items():
            engine = TransformersEngine(models[name], tokenizer)
            with prefixes.sharing(ours):
                losses, scored = _timed(task.scores, engine, samples)
                told, told_in = _timed(task.told, engine, samples, losses) if ours else ({}, 0.0)
                answers[name], answered = _timed(task.answers, engine, samples, told)
            best["scored"][name] = min(best["scored"][name], scored)
            best["answered"][name] = min(best["answered"][name], told_in + answered)
    lines = [[what, *_rates(tokens, seconds)] for what, seconds in best.items()]
    both = {name: sum(seconds[name] for seconds in best.values()) for name in kinds}
    lines.append(["both", *_rates(tokens, both)])
    title = f"{len(samples)} rows of {options.rows.name}, {tokens:,} tokens: tokens a CPU second"
    table(title, ["rows", *kinds, f"times (bar: {CPU_FACTOR:.0f})"], lines)
    equal = sum(one == other for one, other in zip(*answers.values(), strict=True))
    print(f"told by scoring: {len(told)} of {len(samples)}; equal answers: {equal}")


def _timed(work: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    """What it gives, and its CPU seconds."""
    started = time.process_time()
    return work(*given), time.process_time() - started


def _rates(tokens: int, seconds: dict[str, float]) -> list[float | str]:
    before, now = seconds.values()
    return [tokens / before, tokens / now, f"{before / now:.2f}"]


def _compare_rouge(small: bool) -> None:
    pairs = SHAPES[small][4]
    sides = ["rouge", "rouge, Chinese"]
    if importlib.util.find_spec("rouge_score"):
        sides.append("rouge-score")
    else:
        print("\nrouge-score is not installed: no peer for ROUGE-L")
    costs = {side: _run(side, small) for side in sides}
    table(
        f"ROUGE-L of {pairs} pairs of about 300 characters (bar: {ROUGE_SECONDS:.0f} CPU s a 1000)",
        ["side", "CPU s", "mean score"],
        [[name, cost.results["cpu"], cost.results["mean"]] for name, cost in costs.items()],
    )


def _run(side: str, small: bool, folder: Path | None = None):
    command = [sys.executable, __file__, "--side", side]
    command += ["--small"] if small else []
    return measure(command + (["--model", str(folder)] if folder else []))


def _write_model(folder: Path, hidden: int, layers: int) -> None:
    """A random Llama whose choices are decided, with EOS that comes now and then."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, 2000)}
    _tokenizer(words).save_pretrained(folder)


def _tokenizer(words: dict[str, int]):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _prompts(count: int) -> list[list[int]]:
    chance = random.Random(1)
    return [[1, *chance.choices(range(3, 2000), k=chance.randint(8, 120))] for _ in range(count)]


def _load(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def slimtune(folder: Path, count: int, tokens: int, _: int) -> None:
    """Our batched generation."""
    from slimtune.inference.answers import in_order
    from slimtune.inference.decoding import Decoding
    from slimtune.inference.generation import generate

    model, tokenizer = _load(folder)
    started = time.process_time()
    found = in_order(generate(model, tokenizer, _prompts(count), Decoding(tokens)))
    report(cpu=time.process_time() - started, answers=[one.text for one in found])


def plain_generate(folder: Path, count: int, tokens: int, _: int) -> None:
    """transformers' own generate, one prompt at a time."""
    import torch

    model, tokenizer = _load(folder)
    started = time.process_time()
    answers = []
    for prompt in _prompts(count):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        text = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
        answers.append(text.strip())
    report(cpu=time.process_time() - started, answers=answers)


def rouge(_: Path | None, __: int, ___: int, pairs: int) -> None:
    """Our ROUGE-L."""
    from slimtune.evaluation.measures import rouge_l

    _time_rouge(rouge_l, _english(pairs))


def rouge_chinese(_: Path | None, __: int, ___: int, pairs: int) -> None:
    """Our ROUGE-L where it has most to do: in Chinese every character is a word."""
    from slimtune.evaluation.measures import rouge_l

    chance = random.Random(3)
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 500)]
    _time_rouge(
        rouge_l, [["".join(chance.choices(signs, k=300)) for _ in "pr"] for _ in range(pairs)]
    )


def rouge_score(_: Path | None, __: int, ___: int, pairs: int) -> None:
    """rouge-score's ROUGE-L."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    _time_rouge(lambda p, r: 100 * scorer.score(r, p)["rougeL"].fmeasure, _english(pairs))


def _english(count: int) -> list[list[str]]:
    chance = random.Random(2)
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(1, 7))) for _ in range(300)]
    pairs = [[" ".join(chance.choices(words, k=60))[:300] for _ in range(2)] for _ in range(count)]
    return pairs


def _time_rouge(score, pairs: list[list[str]]) -> None:
    started = time.process_time()
    scores = [score(prediction, reference) for prediction, reference in pairs]
    report(cpu=time.process_time() - started, mean=sum(scores) / len(scores))


SIDES = {
    "slimtune": slimtune,
    "generate": plain_generate,
    "rouge": rouge,
    "rouge, Chinese": rouge_chinese,
    "rouge-score": rouge_score,
}

if __name__ == "__main__":
    main()
