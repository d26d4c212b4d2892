"""One GGUF file, its proof and its Modelfile."""

from pathlib import Path
from typing import Literal

from slimtune.config.fields import Model, Section, setting

Quantization = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M"]


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
    ollama_create: bool = setting(
        False,
        "true runs `ollama create` with the Modelfile and asks the new model one prompt;\n"
        "needs ollama installed and running.",
    )
    verify: Literal["quick", "full", "off"] = setting(
        "quick",
        "Proof that file and model agree, before the file gets its name: quick compares 8 rows,\n"
        "full 64; both load the model once (2 to 4 bytes a parameter). off proves nothing.",
    )
