"""Pruning, distillation, and the run that combines them with LoRA."""

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from slimtune.config.catalogues import names
from slimtune.config.fields import (
    MOST,
    Auto,
    Count,
    Epochs,
    ModelReference,
    Positive,
    Rate,
    Section,
    Seed,
    Share,
    choice,
    setting,
)
from slimtune.config.gguf import TypeOrSize, short_size


def _count(value: object) -> object:
    """A number of parameters as people write it: 5e9, 5B, 500M."""
    found = re.fullmatch(r"([0-9.]+) ?([kMB])", value) if isinstance(value, str) else None
    return float(found[1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[found[2]] if found else value


_Listed = Literal["en", "zh"]


def _with_list(language: object) -> object:
    if isinstance(language, str) and language not in get_args(_Listed):
        there = " and ".join(get_args(_Listed))
        raise ValueError(
            f"there are word lists for {there}; for another language name a text in it: "
            "--vocabulary-text FILE"
        )
    return language


Language = Annotated[_Listed, BeforeValidator(_with_list)]
StageName = Literal[
    "vocabulary",
    "prune",
    "blocks",
    "cache",
    "distil",
    "lora",
    "merge",
    "quantise",
    "convert",
    "evaluate",
]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class Pruning(Section):
    """A smaller model of the same family: neurons, heads, layers or channels are cut."""

    model_path: ModelReference = setting(
        "models/finetuned/merged_model", "Model to prune: a folder or a Hub id."
    )
    output_dir: Path = setting(Path("models/pruned"), "Folder for the pruned model.")
    ffn_ratio: Ratio = setting(
        0.33,
        "Share of FFN neurons to cut in every layer, 0: none. The size left is rounded to a\n"
        "multiple of 256 where K-quants profit, else of 32; what the ratio became is said. More\n"
        "is smaller, faster and worse.",
    )
    kv_group_ratio: Ratio = setting(
        0.0, "Share of attention heads to cut, in whole KV groups; saves KV cache, too."
    )
    layer_ratio: Ratio = setting(
        0.0, "Share of layers to drop: the fastest model for its size, but it loses the most."
    )
    hidden_ratio: Ratio = setting(
        0.0, "Share of hidden channels to cut, in embedding and output layer, too."
    )
    target_params: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_count)] = (
        setting(
            None,
            "Parameters to arrive at (5e9, 5B, 500M) in place of ffn_ratio and kv_group_ratio:\n"
            "neurons and KV groups are cut by equal shares until the count comes closest.",
            examples=["500M"],
        )
    )
    vocabulary: Literal["keep", "trim"] = setting(
        "keep",
        "trim: only the tokens of the training rows, vocabulary_text and languages stay, and what\n"
        "those are made of. Such text keeps its tokens and its answers; other text takes more of\n"
        "them. Saves rows of embedding and output layer.",
    )
    languages: list[Language] = setting(
        [], "trim: languages whose common words stay, whether the rows have them or not."
    )
    vocabulary_text: Path | None = setting(
        None,
        "trim: a text file in UTF-8 whose tokens stay, such as that of later trainings. null:\n"
        "none, in the combined run distillation.text_data.",
    )
    cut_ends: bool = setting(False, "true lets layer_ratio drop the first and last layer as well.")
    criterion: Literal[names("criteria")] = choice(
        "activation", "What decides which units stay.", "criteria"
    )
    refit: bool | Auto = setting(
        "auto",
        "true solves the layers behind a cut again, in closed form on the calibration rows: costs\n"
        "seconds and wins back half of what was lost. auto: true, but false with recover: blocks,\n"
        "where the layers end closer without.",
        bare="true",
    )
    recover: Literal["none", "blocks"] = setting(
        "none",
        "blocks: each layer then learns, in order, to give what the uncut one gave on the\n"
        "calibration rows, one layer of each model in memory. Wins back much of what the cut\n"
        "cost, and distillation afterwards more; takes as long as so many epochs of training.",
    )
    recovery_epochs: Epochs = setting(
        4, "blocks: times through the calibration rows, for each layer."
    )
    calibration: Literal["auto", "self", "none"] = setting(
        "auto",
        "Rows to read: auto takes the training rows where they are there, else the model's own\n"
        "words where rows are needed; self always its own words; none for magnitude, streamed.",
    )
    calibration_rows: Annotated[int, Field(ge=8, le=MOST)] = setting(
        320, "How many rows to read; a fifth of them measures the model before and after."
    )
    calibration_length: Annotated[int, Field(ge=8, le=MOST)] = setting(
        256, "Longest row to read, in tokens; memory and time grow with it."
    )
    sparsity: Ratio = setting(
        0.0,
        "Above 0: set this share of the weights to zero and cut nothing. Neither file nor speed\n"
        "changes by it.",
    )
    sparsity_pattern: Literal[names("sparsity_patterns")] = choice(
        "unstructured", "Where zeros may lie.", "sparsity_patterns"
    )
    sparsity_method: Literal[names("sparsity_methods")] = choice(
        "wanda",
        "Which weights become zero: those that are smallest by this measure.",
        "sparsity_methods",
    )
    seed: Seed = setting(42, "Seed of the model's own words and of the random criterion.")

    @property
    def trims(self) -> bool:
        """Whether tokens go."""
        return self.vocabulary == "trim"

    @property
    def recovers(self) -> bool:
        """Whether layers learn what the uncut ones gave."""
        return self.recover == "blocks"

    @property
    def cuts(self) -> bool:
        """Whether anything else is cut, or set to zero."""
        ratios = (self.ffn_ratio, self.kv_group_ratio, self.layer_ratio, self.hidden_ratio)
        return any(ratios) or self.target_params is not None or self.sparsity > 0


class Distillation(Section):
    """A large model teaches a small one: the pruned student wins back what it lost."""

    teacher_model: ModelReference = setting(
        "auto",
        "Model that teaches. A folder must have the student's tokenizer; a .gguf file is read by\n"
        "llama.cpp as it is, or writes answers where its tokens are others; ollama:NAME and the\n"
        "address of a server (http://127.0.0.1:8080/v1#NAME) write answers, see mode. auto: the\n"
        "sample's teacher for the sample's models, else the model before pruning.",
    )
    student_model: ModelReference = setting("models/pruned", "Model that learns.")
    output_dir: Path = setting(Path("models/distilled"), "Folder for the distilled student.")
    mode: Literal["cached", "online", "sequence"] = setting(
        "cached",
        "cached: the teacher runs once, alone in memory, and its answers wait on disk; online:\n"
        "both models in memory, every probability, slower steps; sequence: the teacher writes\n"
        "answers of its own and the student trains on these, so any tokenizer will do.",
    )
    teacher_quantization: Literal[names("quantizations")] = choice(
        "none",
        "How the teacher's linear layers are kept while it is asked. A large teacher fits into a\n"
        "quarter or half of the memory and is a little less exact.",
        "quantizations",
    )
    answer_tokens: Positive = setting(
        256, "sequence: longest answer that the teacher writes; one that is not done is left out."
    )
    student: Literal["full", "lora", "layers"] = setting(
        "full",
        "What of the student learns: full (all weights: wins back most), lora (adapters, merged\n"
        "at the end: a third of the memory), or layers (of a quantised_student alone: one layer\n"
        "after another, of any size of model, to give what it gave before; it has no teacher).",
    )
    quantised_student: TypeOrSize = setting(
        None,
        "A type of GGUF (Q4_K_M) or the file's size (1.2GB): the student learns through its\n"
        "rounding to be what it was before, and the file is written into output_dir. All weights\n"
        "learn; the teacher is the student itself unless named, and counts alone (alpha 1).",
        examples=["Q4_K_M"],
    )
    cache_dir: Path = setting(
        Path("models/teacher_cache"),
        "Folder for the teacher's answers. The same rows and teacher are never asked twice.",
    )
    text_data: Literal["auto"] | Path | None = setting(
        "auto",
        "Plain text, one passage a line, taught beside the rows so that the student keeps its\n"
        "general knowledge; null: rows only. auto: the sample's text for the sample's models.",
    )
    text_passages: Count = setting(
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
    divergence: Literal[names("divergences")] = choice(
        "forward_kl", "How far the student is from the teacher.", "divergences"
    )
    alpha: Share = setting(
        0.5, "Share of the teacher in the loss; the rest is cross entropy on the rows."
    )
    epochs: Epochs = setting(2, "Times through rows and text.")
    learning_rate: Rate | Auto = setting(
        "auto",
        "Step size of the student. auto: what is usual for its size and for what of it learns,\n"
        "such as 2e-5 for all weights of 7B and 1e-5 for a quantised_student (of its\n"
        "layers by their width); it is printed.",
    )

    @property
    def quantised_name(self) -> str | None:
        """What a file that is distilled into is called after its model's name."""
        wanted = self.quantised_student
        return short_size(wanted) if isinstance(wanted, int) else wanted


class PrunedDistilled(Section):
    """Prune, distil and LoRA in one run, from the base model to a small fine-tuned one."""

    output_dir: Path = setting(
        Path("models/pruned_distilled"),
        "Folder for pruned, teacher_cache, distilled, lora_adapter, final, evaluation, card.md,\n"
        "trimmed where the vocabulary is, recovered where layers learn, gguf and evaluation-SIZE\n"
        "where a size is given, and final-TYPE where distillation.quantised_student is.",
    )
    stages: list[StageName] = setting(
        list(get_args(StageName)),
        "What to run, always in this order: vocabulary (where pruning.vocabulary is trim), prune\n"
        "(with refit), blocks (where pruning.recover is blocks), cache (ask the teacher), distil,\n"
        "lora (on the task), merge, quantise (into the file that distillation.quantised_student\n"
        "names), convert (to GGUF, where gguf.target_size or target_bits is given), evaluate.\n"
        "What is left out must be there from an earlier run.",
    )
