"""The model that all starts from, adapters, and how they and students are trained."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from slimtune.config.catalogues import facts, names
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

AUTO_ROWS = 16  # rows of one update and accumulation step with `batch_size: auto`
LEAST_TO_CHOOSE = 20  # validation rows: the loss of fewer does not tell the best point
ENOUGH_UPDATES = 60  # of the weights: what few rows get with `epochs: auto`


class ModelSection(Section):
    """The model that everything starts from, and the prompt that every stage shares."""

    base_model: ModelReference = setting(
        "models/sample/base",
        "Folder or Hub id of the base model, a .gguf file, or ollama:NAME for a model of Ollama's\n"
        "local store. The sample model runs on any laptop; for the real thing write\n"
        "meta-llama/Llama-2-7b-chat-hf or a folder that holds it.",
    )
    unpacked_dir: Path = setting(
        Path("models/unpacked"),
        "Where a GGUF file that stands for a base model is unpacked, once, into a folder of its\n"
        "name; from there on it is a folder.",
    )
    prompt_template: Literal[("auto", *names("templates"), "tokenizer")] = choice(
        "auto",
        "Prompt around each conversation; tokenizer: the model's own, which auto takes where it\n"
        "has one, else chatml where the vocabulary has its tokens, else llama2. It is saved with\n"
        "the model, so evaluation, llama.cpp and Ollama use the same one.",
        "templates",
    )
    system_prompt: str | None = setting(
        None,
        "System message put before rows and chats that have none, and into the Modelfile. null:\n"
        "the one that all training rows of the model opened with, if any; empty: none.",
    )
    quantization: Literal[names("quantizations")] = choice(
        "none",
        "How the base's linear layers are kept; the flag by itself means nf4. Saves memory and\n"
        "costs speed, on a CPU much of it.",
        "quantizations",
        flag="use-quantization",
        bare="nf4",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Where to compute: auto takes the GPU when there is one, else the CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Numbers to compute with. auto on a GPU: bfloat16 where it has it, else float16; on a\n"
        "CPU: float32, but with AVX512-BF16 bfloat16 products from hidden size 384 on, for twice\n"
        "the speed in half the memory. float16 on a CPU is refused.",
    )


class Lora(Section):
    """The adapter: small matrices beside the frozen weights (LoRA, arXiv:2106.09685)."""

    output_dir: Path = setting(
        Path("models/finetuned"), "Folder for lora_adapter, checkpoints and merged_model."
    )
    method: Literal["lora", "full"] = setting(
        "lora",
        "lora: an adapter. full: all weights, into OUTPUT_DIR/full_model; about 16 bytes of\n"
        "memory a parameter, so for small models.",
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
    initialisation: Literal[names("initialisations")] = choice(
        "default",
        "Where the matrices start. The adapter is saved for the base as it is, at twice the rank\n"
        "unless default.",
        "initialisations",
        flag="lora-init",
    )
    rslora: bool = setting(
        False, "true scales by alpha / sqrt(rank) instead: for ranks of 32 and more."
    )
    dora: bool = setting(
        False,
        "true learns each weight's length and direction apart (DoRA): often better at low rank,\n"
        "half as fast, more memory.",
    )
    loraplus_ratio: Annotated[float, Field(ge=1)] = setting(
        1.0,
        "Learning rate of the B matrices over that of A (LoRA+): 16 learns faster, with half the\n"
        "learning rate; 1 is plain LoRA.",
    )
    modules_to_save: list[str] = setting(
        [],
        "Modules trained whole and saved with the adapter, such as embed_tokens, lm_head: for\n"
        "new words. As large as they are, so mind the memory.",
    )


class Training(Section):
    """How adapters and students are trained: rows, steps, memory."""

    train_data: Path = setting(
        Path("data/finetune/train_train.jsonl"), "Prepared rows to learn from."
    )
    val_data: Path | None = setting(
        None,
        "Prepared rows for the validation loss; null: the NAME_validation.jsonl beside the\n"
        "training rows, when it is there. With it the best checkpoint is kept; fewer than\n"
        f"{LEAST_TO_CHOOSE} rows only show the loss, and the last one is kept.",
    )
    replay: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.0,
        "Share of the rows of an epoch that are general ones, against forgetting: 0.1 is a usual\n"
        "one, and makes an epoch a ninth longer. 0: none.",
    )
    replay_data: Path | None = setting(
        None,
        "What is replayed: prepared rows, or a .txt of plain text, a passage a line; best what\n"
        "the base itself has learned from. null: 263 general questions in English and Chinese,\n"
        "written for this project (evaluation asks others); for the sample model lines of its own\n"
        "world.",
    )
    epochs: Epochs | Auto = setting(
        "auto",
        "Times through the training rows. auto: 2, or as many as few rows need for\n"
        f"{ENOUGH_UPDATES} updates, at most 20; it is printed.",
    )
    batch_size: Positive | Auto = setting(
        "auto",
        "Rows per step and device. auto: as many of 16 as fit by the estimate, the rest by\n"
        "accumulation, so that an update learns from 16 x gradient_accumulation_steps rows on any\n"
        "machine. Of a number of your own, halve it and double the accumulation where memory is\n"
        "short.",
    )
    gradient_accumulation_steps: Positive = setting(
        1, "Batches summed before one update: a larger effective batch at the same memory."
    )
    learning_rate: Rate | Auto = setting(
        "auto",
        "Step size. auto: what is usual for the model's size and for what of it learns, such as\n"
        "2e-4 for an adapter on 7B and a tenth of that for all weights; it is printed.",
    )
    lr_scheduler: Literal[names("lr_schedulers")] = choice(
        "cosine", "How the step size falls over the run.", "lr_schedulers"
    )
    warmup_ratio: Share = setting(0.05, "Share of the steps over which the step size rises.")
    optimizer: Literal[names("optimizers")] = choice(
        "adamw_torch",
        "What makes steps of gradients, and what it keeps for each trained parameter. Matters\n"
        "with method full.",
        "optimizers",
    )
    weight_decay: Annotated[float, Field(ge=0)] = setting(0.0, "The optimizer's weight decay.")
    neftune_alpha: Annotated[float, Field(ge=0)] = setting(
        0.0,
        "Noise on the embeddings while training (NEFTune): 5 often makes fuller answers from\n"
        "little data; 0: none.",
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = setting(
        1.0, "Gradients are clipped to this norm."
    )
    max_length: Annotated[int, Field(ge=16, le=MOST)] = setting(
        512,
        "Longest row in tokens; a longer one loses the start of its prompt, never its answer.\n"
        "Memory grows with it. A model that follows fewer lowers this default; a length of your\n"
        "own that it cannot follow is refused.",
    )
    activation_checkpointing: bool | Auto = setting(
        "auto",
        "true saves most of the activation memory and costs about 30 % speed. auto: only where a\n"
        "step would not fit without.",
        bare="true",
    )
    stream_base: bool | Auto = setting(
        "auto",
        "true leaves the base's weights in their files and reads its layers one after another,\n"
        "there and back: memory for two of them, the same losses to the bit. Every batch reads\n"
        "the model twice, so large batches pay. auto: only where the model would not fit\n"
        "otherwise.",
        bare="true",
    )
    time_steps: Count = setting(
        0,
        "With --dry-run: steps to run and time, for an estimate of the whole run's duration. That\n"
        "loads the model; at 0 nothing is loaded.",
    )
    evaluations_per_epoch: Positive = setting(2, "Validations (and checkpoints) per epoch.")
    early_stopping_patience: Positive = setting(
        3,
        "Validations without a better loss after which training stops; those of the first\n"
        f"{ENOUGH_UPDATES} updates do not count.",
    )
    max_truncated_share: Share = setting(
        0.1, "Training refuses to start when more than this share of rows must be cut."
    )
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "Where losses are sent as well; metrics.jsonl and loss.png are written anyway."
    )
    seed: Seed = setting(42, "Seed of adapter and row order.")

    @property
    def rows(self) -> int:
        """Rows per step and device; with auto, before memory is looked at, all of AUTO_ROWS."""
        return AUTO_ROWS if self.batch_size == "auto" else self.batch_size

    @property
    def optimizer_of_bitsandbytes(self) -> bool:
        return facts("optimizers", "bitsandbytes")[self.optimizer]
