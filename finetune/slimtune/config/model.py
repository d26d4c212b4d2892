"""The model that everything starts from."""

from typing import Literal

from slimtune.config.fields import Model, Section, setting


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
