"""The model that everything starts from."""

from typing import Literal

from slimtune.config.fields import ModelReference, Section, setting


class ModelSection(Section):
    """The model that everything starts from, and the prompt that every stage shares."""

    base_model: ModelReference = setting(
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
    quantization: Literal["none", "nf4", "int8"] = setting(
        "none",
        "How the base's linear layers are kept: none; nf4 (4 bits, double quantisation: a quarter\n"
        "of 16 bits, and what the flag means by itself); int8 (half of 16 bits, a little more\n"
        "exact). Saves memory and costs speed, on a CPU much of it.",
        flag="use-quantization",
        bare="nf4",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Where to compute: auto takes the GPU when there is one, else the CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Numbers to compute with: auto is float32 on CPU, bfloat16 on a GPU that has it, else\n"
        "float16. float16 on a CPU is refused.",
    )
