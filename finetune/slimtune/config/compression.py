"""Pruning, distillation, and the run that combines them with LoRA."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from slimtune.config.fields import Model, Positive, Section, Share, setting


class Pruning(Section):
    """A smaller model of the same family: FFN neurons are cut, an ordinary checkpoint is left."""

    model_path: Model = setting(
        "models/finetuned/merged_model", "Model to prune: a folder or a Hub id."
    )
    output_dir: Path = setting(Path("models/pruned"), "Folder for the pruned model.")
    ffn_ratio: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.33,
        "Share of FFN neurons to cut; the size left is rounded to a multiple of 256 where the\n"
        "model is that large, so that K-quants apply. More is smaller, faster and worse.",
    )
    criterion: Literal["magnitude", "random"] = setting(
        "magnitude",
        "Which neurons stay: magnitude (product of the norms of their weights; needs no data),\n"
        "random (to compare with).",
    )
    seed: int = setting(42, "Seed of the random criterion.")


class Distillation(Section):
    """A large model teaches a small one: the pruned student wins back what it lost."""

    teacher_model: Model = setting(
        "models/sample/teacher",
        "Model that teaches. It must have the student's tokenizer; the model before pruning is\n"
        "always a possible teacher.",
    )
    student_model: Model = setting("models/pruned", "Model that learns.")
    output_dir: Path = setting(Path("models/distilled"), "Folder for the distilled student.")
    mode: Literal["cached", "online"] = setting(
        "cached",
        "cached: the teacher runs once, alone in memory, and its answers wait on disk; online:\n"
        "both models in memory, every probability, slower steps.",
    )
    cache_dir: Path = setting(
        Path("models/teacher_cache"),
        "Folder for the teacher's answers. The same rows and teacher are never asked twice.",
    )
    text_data: Path | None = setting(
        Path("data/sample_text.txt"),
        "Plain text, one passage a line, taught beside the rows so that the student keeps its\n"
        "general knowledge; null: rows only.",
    )
    text_passages: Annotated[int, Field(ge=0)] = setting(
        2000, "How many passages of the text to use (spread over the file); costs time."
    )
    top_k: Positive = setting(
        32,
        "Teacher probabilities kept per token; the rest is one bucket. 4 bytes each on disk\n"
        "(6 above 65,536 tokens of vocabulary). online keeps them all.",
    )
    temperature: Annotated[float, Field(gt=0)] = setting(
        1.0, "Above 1 the teacher's small probabilities count more; 1 measured best."
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"] = setting(
        "forward_kl",
        "How far the student is from the teacher: forward_kl measured best on given rows;\n"
        "reverse_kl keeps to the teacher's first choices, jsd and skew_kl forgive single misses.",
    )
    alpha: Share = setting(
        0.5, "Share of the teacher in the loss; the rest is cross entropy on the rows."
    )
    epochs: Positive = setting(2, "Times through rows and text.")
    learning_rate: Annotated[float, Field(gt=0)] = setting(
        1e-3,
        "Step size for all weights of the student. 1e-3 suits the sample model; 2e-5 a 7B one.",
    )


class PrunedDistilled(Section):
    """Prune, distil and LoRA in one run, from the base model to a small fine-tuned one."""

    output_dir: Path = setting(
        Path("models/pruned_distilled"), "Folder for pruned, distilled, lora_adapter and final."
    )
