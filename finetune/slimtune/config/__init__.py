"""The schema: the only place where a setting, its default, its help and its check are written.

One file a stage, one pydantic model a section, in pipeline order here; what is chosen by name is
listed in `catalogues.yaml`. `config.yaml`, its comments,
the flags, `--help`, the checks, `config.schema.json` and the settings in every `run.json` are all
derived from it by `slimtune.settings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import PrivateAttr

from slimtune.config.compression import Distillation, PrunedDistilled, Pruning
from slimtune.config.data import Data, SampleSection
from slimtune.config.evaluation import Evaluation, GenerationSection
from slimtune.config.fields import Section
from slimtune.config.gguf import Gguf
from slimtune.config.training import Lora, ModelSection, Training


@dataclass(frozen=True)
class Options:
    """What a command line may ask of any script; never part of config.yaml."""

    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    debug: bool = False
    config: str | None = None  # the settings file as it was named
    flags: Mapping[str, str] = field(default_factory=dict)  # "section.name": as it was typed
    unpacked: Mapping[str, str] = field(default_factory=dict)  # folder: the GGUF it stands for


class Config(Section):
    """Every setting of every script."""

    model: ModelSection = ModelSection()
    sample: SampleSection = SampleSection()
    data: Data = Data()
    pruning: Pruning = Pruning()
    distillation: Distillation = Distillation()
    lora: Lora = Lora()
    training: Training = Training()
    pruned_distilled: PrunedDistilled = PrunedDistilled()
    generation: GenerationSection = GenerationSection()
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
# Of a folder that is written: what is told beside the weights to who serves them.
_SERVED = _fields(GenerationSection, "generation", without=("seed",))
_LANGUAGE = "evaluation.language"  # of what any script says of itself
SCRIPTS: dict[str, tuple[str, ...]] = {
    "create_sample_data": ("sample",)
    + ("data.validation_ratio", "data.test_ratio", "data.group_column", "data.seed", _LANGUAGE),
    "prepare_data": ("data", "model.base_model", "model.prompt_template", "model.system_prompt")
    + ("training.max_length", _LANGUAGE),
    "model_pruning": ("pruning", "training.train_data", "model.prompt_template", *_SERVED)
    + (_LANGUAGE,),
    "knowledge_distillation": ("distillation", *_COMPUTE, *_SERVED)
    + _fields(Lora, "lora", without=("output_dir", "method"))
    + _fields(Training, "training", without=("epochs", "learning_rate", "stream_base"))
    + (_LANGUAGE,),
    "train_lora": ("lora", "training", "model.base_model", *_COMPUTE, "model.quantization")
    + (*_SERVED, _LANGUAGE),
    "train_pruned_distilled": ("pruned_distilled", "training", "model.base_model", *_COMPUTE)
    + _fields(Lora, "lora", without=("output_dir", "method"))
    + _fields(Pruning, "pruning", without=("model_path", "output_dir"))
    + _fields(Distillation, "distillation", without=("student_model", "output_dir"))
    + ("evaluation.test_data", "evaluation.max_rows", "evaluation.token_budget")
    + (
        "evaluation.extract",
        "evaluation.general",
        "evaluation.fail_if",
        _LANGUAGE,
        "generation",
        "gguf.target_size",
        "gguf.target_bits",
    ),
    "evaluate_model": (
        "evaluation",
        "generation",
        "model",
        "training.train_data",
        "training.max_length",
    ),
    "convert_to_gguf": ("gguf", "model.prompt_template", "model.system_prompt")
    + ("training.max_length", "training.train_data", "training.val_data")
    + ("evaluation.test_data", "generation", _LANGUAGE),
}
