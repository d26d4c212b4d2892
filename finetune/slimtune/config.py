"""The schema: the only place where a setting, its default, its help and its check are written.

One pydantic model a section, in pipeline order. `config.yaml`, its comments, the flags, `--help`,
the checks, `config.schema.json` and the settings in every `run.json` are all derived from it by
`slimtune.settings`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

Model = Annotated[
    str, "model"
]  # a local folder (or .gguf file) or a Hub id: `settings` resolves it
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Quantization = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M"]


def setting(default: Any, help: str, *, flag: str | None = None, **checks: Any) -> Any:
    """A field with its help; `flag` names its flag where the dashed field name is not it."""
    return Field(
        default, description=help, json_schema_extra={"flag": flag} if flag else {}, **checks
    )


class Section(BaseModel):
    """A section of config.yaml: unknown names are errors, numbers must be finite."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=()
    )


class ModelSection(Section):
    """The model that everything starts from, and the prompt that every stage shares."""

    base_model: Model = setting(
        "models/sample/base",
        "Folder or Hub id of the base model. The sample model runs on any laptop;\n"
        "for the real thing write meta-llama/Llama-2-7b-chat-hf or a folder that holds it.",
    )
    prompt_template: Literal["llama2", "alpaca", "chatml", "tokenizer"] = setting(
        "llama2",
        "Prompt around each conversation: llama2, alpaca, chatml, or tokenizer (the model's own).\n"
        "It is saved with the model, so evaluation, llama.cpp and Ollama use the same one.",
    )
    system_prompt: str = setting(
        "", "System message put before rows and chats that have none; empty: no system message."
    )
    use_quantization: bool = setting(
        False,
        "true loads the base in 4 bits (nf4, double quantisation): a quarter of the memory of\n"
        "16 bits, slower steps. Fits Llama-2-7B on a GPU of 8 GB. Works on CPU, but slowly.",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Where to compute: auto takes the GPU when there is one, else the CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Numbers to compute with: auto is float32 on CPU, bfloat16 on a GPU that has it, else\n"
        "float16. float16 on a CPU is refused.",
    )


class Sample(Section):
    """The embedded example: rows whose answers a program can check, and two small Llamas."""

    output_dir: Path = setting(
        Path("data"),
        "Folder for raw_data.json, its CSV twin, and sample_text.txt: plain text of the same\n"
        "world, as the sample base model has read it.",
    )
    models_dir: Path = setting(
        Path("models/sample"), "Folder for the sample models `base` and `teacher`."
    )
    rows: Positive = setting(4000, "Instruction rows to write.")
    text_lines: Positive = setting(4000, "Lines of plain text to write.")
    seed: int = setting(42, "Same seed, same rows, byte for byte.")
    train_models: bool = setting(
        False,
        "true trains both sample models again from nothing instead of unpacking the shipped\n"
        "ones (the time it takes is written in finetune/slimtune/sample/README.md).",
    )


class Data(Section):
    """Raw rows in, canonical train, validation and test rows out."""

    input: Path = setting(Path("data/raw_data.json"), "File with the raw rows.")
    input_format: Literal["auto", "json", "jsonl", "csv"] = setting(
        "auto", "File format; auto looks at the content, not at the name."
    )
    format_type: Literal["auto", "alpaca", "qa", "messages", "sharegpt"] = setting(
        "auto",
        "Shape of a row: alpaca (instruction, input, output), qa (question, answer), messages\n"
        "(OpenAI), sharegpt (conversations); auto looks at the columns.",
    )
    output_dir: Path = setting(Path("data/finetune"), "Folder for the prepared rows.")
    output_name: str = setting(
        "train",
        "Files are named NAME_train.jsonl, NAME_validation.jsonl, NAME_test.jsonl.",
        pattern=r"^[\w.-]+$",
    )
    validation_ratio: Share = setting(
        0.05, "Share of the rows kept for validation during training."
    )
    test_ratio: Share = setting(0.1, "Share of the rows kept for the final test.")
    group_column: str = setting(
        "fact",
        "Column whose value decides the split, so that rows with the same value stay together;\n"
        "rows without it (and an empty setting) are split by their prompt.",
    )
    seed: int = setting(42, "Another seed, another split.")

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> "Data":
        if self.validation_ratio + self.test_ratio >= 1:
            raise ValueError("validation_ratio + test_ratio must stay below 1")
        return self


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
    cache_dir: Path = setting(
        Path("models/teacher_cache"),
        "Folder for the teacher's answers: it runs once, alone in memory, before the student.",
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
        "Teacher probabilities kept per token; the rest is one bucket. 6 bytes each on disk.",
    )
    temperature: Annotated[float, Field(gt=0)] = setting(
        1.0, "Above 1 the teacher's small probabilities count more; 1 measured best."
    )
    alpha: Share = setting(
        0.5,
        "Share of the teacher in the loss (forward KL); the rest is cross entropy on the rows.",
    )
    epochs: Positive = setting(2, "Times through rows and text.")
    learning_rate: Annotated[float, Field(gt=0)] = setting(
        1e-3,
        "Step size for all weights of the student. 1e-3 suits the sample model; 2e-5 a 7B one.",
    )


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
    seed: int = setting(42, "Seed of adapter and row order.")


class PrunedDistilled(Section):
    """Prune, distil and LoRA in one run, from the base model to a small fine-tuned one."""

    output_dir: Path = setting(
        Path("models/pruned_distilled"), "Folder for pruned, distilled, lora_adapter and final."
    )


class Evaluation(Section):
    """An honest before and after: the same rows and prompt, one model in memory at a time."""

    lora_model: Path | None = setting(
        Path("models/finetuned/lora_adapter"),
        "Adapter to put on the base model; null: none.",
    )
    models: list[Model] = setting(
        [], "More models to compare: folders, Hub ids or .gguf files, separated by commas."
    )
    test_data: Path | None = setting(
        None,
        "Prepared rows to test on; null: the NAME_test.jsonl beside the training rows.",
    )
    output: Path = setting(
        Path("models/evaluation/evaluation_results.csv"),
        "CSV with one row a prompt; metrics and the report go beside it.",
    )
    max_rows: Annotated[int, Field(ge=0)] = setting(0, "Test rows to use; 0: all.")
    max_new_tokens: Positive = setting(32, "Longest answer in tokens.")
    interactive: bool = setting(False, "true opens a chat instead.")
    merge: bool = setting(False, "true merges the adapter into the base and stops.")
    merged_dir: Path | None = setting(
        None,
        "Folder for the merged model; null: merged_model beside the adapter.",
        flag="output-dir",
    )
    language: Literal["en", "zh"] = setting("en", "Language of the report.")


class Gguf(Section):
    """One file for llama.cpp and Ollama, made in one pass, checked against its model."""

    model_path: Model = setting(
        "models/finetuned/merged_model", "Model to convert: a folder of safetensors."
    )
    output_dir: Path = setting(Path("models/gguf"), "Folder for the GGUF file.")
    quantization: Quantization = setting(
        "Q4_K_M",
        "F32, F16, BF16, Q8_0 (half of F16), Q5_K_M, Q4_K_M (a third, the usual choice), Q4_0.",
    )
    model_name: str = setting(
        "slimtune-sample", "Name of the file and of the Ollama model.", pattern=r"^[\w.-]+$"
    )
    create_modelfile: bool = setting(
        False, "true writes an Ollama Modelfile into the working directory."
    )
    verify_prompts: Annotated[int, Field(ge=0)] = setting(
        8,
        "Prompts on which llama.cpp must agree with the model before the file gets its name;\n"
        "0 skips the proof.",
    )


@dataclass(frozen=True)
class Options:
    """What a command line may ask of any script; never part of config.yaml."""

    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    debug: bool = False


class Config(Section):
    """Every setting of every script."""

    model: ModelSection = ModelSection()
    sample: Sample = Sample()
    data: Data = Data()
    pruning: Pruning = Pruning()
    distillation: Distillation = Distillation()
    lora: Lora = Lora()
    training: Training = Training()
    pruned_distilled: PrunedDistilled = PrunedDistilled()
    evaluation: Evaluation = Evaluation()
    gguf: Gguf = Gguf()

    _options: Options = PrivateAttr(default=Options())

    @property
    def options(self) -> Options:
        return self._options


def _fields(section: type[Section], prefix: str, *, without: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in section.model_fields if name not in without)


# What each script shows: whole sections, or single fields as "section.field". A flag belongs
# to the first field that wants it; a later field of the same name gets its section in front.
_COMPUTE = ("model.prompt_template", "model.device", "model.dtype")
SCRIPTS: dict[str, tuple[str, ...]] = {
    "create_sample_data": ("sample",)
    + ("data.validation_ratio", "data.test_ratio", "data.group_column", "data.seed"),
    "prepare_data": ("data", "model.base_model", "model.prompt_template", "model.system_prompt")
    + ("training.max_length",),
    "model_pruning": ("pruning",),
    "knowledge_distillation": ("distillation", *_COMPUTE)
    + _fields(Training, "training", without=("epochs", "learning_rate")),
    "train_lora": ("lora", "training", "model.base_model", *_COMPUTE, "model.use_quantization"),
    "train_pruned_distilled": ("pruned_distilled", "training", "model.base_model", *_COMPUTE)
    + _fields(Lora, "lora", without=("output_dir",))
    + _fields(Pruning, "pruning", without=("model_path", "output_dir"))
    + _fields(Distillation, "distillation", without=("student_model", "output_dir")),
    "evaluate_model": ("evaluation", "model", "training.train_data", "training.max_length"),
    "convert_to_gguf": ("gguf", "model.prompt_template", "model.system_prompt")
    + ("training.max_length", "training.train_data", "evaluation.test_data"),
}
