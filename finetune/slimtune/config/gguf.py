"""A GGUF file: its types or its size, its proof, its Modelfile."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from slimtune.config.catalogues import names
from slimtune.config.fields import ModelReference, Positive, Section, choice, setting


def short_size(count: int) -> str:
    """Bytes as a word for a file's name: 1.2GB, 1.55MB."""
    unit = next((u for u in ("GB", "MB", "kB") if count >= _UNITS[u]), "B")
    return f"{count / _UNITS[unit]:.6g}{unit}"


Quantization = Literal[names("gguf_types")]


_TYPES = {name.lower(): name for name in names("gguf_types")}


def _several(value: Any) -> Any:
    """One type may be written as a word, several as a list or with commas; q4_k_m is Q4_K_M."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list):
        return parts
    return [_TYPES.get(one.lower(), one) if isinstance(one, str) else one for one in parts]


Quantizations = Annotated[list[Quantization], BeforeValidator(_several), Field(min_length=1)]


_UNITS = {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _bytes(value: Any) -> Any:
    """A size of a file as people write it: 1.2GB, 900 MB, 1.1GiB, 1200000000."""
    found = re.fullmatch(r"([0-9.]+) ?([a-zA-Z]*)", value) if isinstance(value, str) else None
    if found is None or found[2] not in _UNITS or found[1].count(".") > 1:
        if isinstance(value, str):
            raise ValueError("a size is written as 1.2GB, 900MB or 1.1GiB")
        return value
    return int(min(float(found[1]) * _UNITS[found[2]], 2.0**63))


_Positive = Annotated[int, Field(gt=0, lt=2**63)]
Size = Annotated[_Positive | None, BeforeValidator(_bytes)]


def _type_or_bytes(value: Any) -> Any:
    """The name of a type as it is, a size in bytes."""
    if isinstance(value, str) and value.lower() in _TYPES:
        return _TYPES[value.lower()]
    try:
        return _bytes(value)
    except ValueError:
        types = ", ".join(names("gguf_types"))
        raise ValueError(
            f"a size is written as 1.2GB or 900MB, and the types are {types}"
        ) from None


TypeOrSize = Annotated[Quantization | _Positive | None, BeforeValidator(_type_or_bytes)]


class Gguf(Section):
    """One file for llama.cpp and Ollama, made in one pass, checked against its model."""

    model_path: ModelReference = setting(
        "models/finetuned/merged_model", "Model to convert: a folder of safetensors."
    )
    lora_model: Path | None = setting(
        None,
        "Adapter merged into model_path while it is converted, without a merged folder on disk;\n"
        "null: none.",
    )
    lora_as: Literal["merged", "adapter"] = setting(
        "merged",
        "What lora_model becomes: merged into the file, or an adapter file of its own beside the\n"
        "base, which llama-server puts on it while it runs (many adapters on one base).",
    )
    adapter_type: Literal["F16", "F32", "BF16", "Q8_0"] = setting(
        "F16", "Type of an adapter file; where the rank is no multiple of 32, Q8_0 is F16 in part."
    )
    output_dir: Path = setting(Path("models/gguf"), "Folder for the GGUF files.")
    quantization: Quantizations = choice(
        ["Q4_K_M"], "Types, one file each, made from one read of the model.", "gguf_types"
    )
    target_size: Size = setting(
        None,
        "Bytes that the file may have (1.2GB, 900MB), in place of quantization: each matrix gets\n"
        "the type that loses least for the room, by what errors cost on training rows. What the\n"
        "whole loses is told beforehand. null: no such limit.",
        examples=["1.2GB"],
    )
    target_bits: Annotated[float, Field(gt=0, le=32)] | None = setting(
        None, "The same, as bits a weight in the mean of all tensors (4.5).", examples=[4.5]
    )
    max_loss: Annotated[float, Field(gt=0)] | None = setting(
        None,
        "The smallest file that loses no more than this, in nats of KL divergence from the model\n"
        "a token, in place of quantization: 0.01 is hardly seen, 0.1 is.",
        examples=[0.01],
    )
    imatrix: Literal["auto"] | Path | None = setting(
        None,
        "Which columns of each matrix matter most, so that 4 and 5 bits lose less: auto measures\n"
        "it on training rows, one layer in memory at a time, or a file of llama-imatrix; null:\n"
        "none, but auto where a size, bits or loss is given.",
    )
    imatrix_rows: Positive = setting(
        128,
        "Training rows that imatrix auto measures; more take longer and change little. For a\n"
        "size, bits or loss half as many validation rows as well: by them the loss is told.",
    )
    through_f16: bool = setting(
        False,
        "true rounds matrices to F16 before quantising them, as llama.cpp's own tools do: the\n"
        "same tensors as theirs. false quantises the exact weights.",
    )
    ggml_library: Path | None = setting(
        None,
        "A libggml-base of llama.cpp to encode K-quants with; null: the one in xllamacpp, and\n"
        "where that is missing llama-quantize on PATH.",
    )
    model_name: str = setting(
        "auto",
        "Name of the Ollama model: NAME, NAME:TAG or USER/NAME:TAG. Files are called after its\n"
        "last part, with - for :. A Modelfile wants the ASCII that Ollama takes. auto: after the\n"
        "model it began as and what was done to it, as in smollm2-135m-instruct-finetuned.",
        pattern=r"^\w[\w.-]*(/\w[\w.-]*)*(:\w[\w.-]*)?$",
    )
    create_modelfile: bool = setting(
        False, "true writes an Ollama Modelfile into the working directory."
    )
    ollama_create: bool = setting(
        False,
        "true runs `ollama create` with the Modelfile, asks the new model eight rows, and\n"
        "compares its answers with the file's own; needs ollama installed and running.",
    )
    verify: Literal["quick", "full", "served", "off"] = setting(
        "quick",
        "Proof that file and model agree, before the file gets its name: quick compares 8 rows,\n"
        "full 64; both load the model once (2 to 4 bytes a parameter). served is quick, and asks\n"
        "llama.cpp's own server the 8 rows as a client does. off proves nothing.",
    )

    @property
    def target(self) -> str | None:
        """What a file of a given size, bits or loss is called after its model's name."""
        if self.target_size is not None:
            return short_size(self.target_size)
        if self.target_bits is not None:
            return f"{self.target_bits:g}bpw"
        return None if self.max_loss is None else f"{self.max_loss:g}nats"

    @property
    def size_name(self) -> str | None:
        """The same of a size or bits alone: what the combined run writes files of."""
        return self.target if self.max_loss is None else None

    @property
    def kinds(self) -> list[str]:
        """What the files are called after their model's name: types, or the one target."""
        return [self.target] if self.target else self.quantization

    @property
    def measures_importance(self) -> bool:
        return self.imatrix == "auto" or (self.imatrix is None and self.target is not None)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        named = ("target_size", "target_bits", "max_loss")
        given = [name for name in named if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say how large the file may be")
        if given and self.lora_as == "adapter":
            raise ValueError(f"{given[0]} is for a whole model, and lora_as: adapter writes two")
        return self

    @property
    def wants_modelfile(self) -> bool:
        """`ollama create` needs one too."""
        return self.create_modelfile or self.ollama_create
