"""Convert a model to GGUF files for llama.cpp and Ollama, and prove that they are the same model.

    python finetune/convert_to_gguf.py
    python finetune/convert_to_gguf.py --model-path models/finetuned/merged_model \\
        --quantization Q4_K_M --create-modelfile --model-name llama2-finetuned
    ollama create llama2-finetuned -f Modelfile      # or --ollama-create does it, and tries it out

reads   a model folder (safetensors), in one pass, whatever its size; with --lora-model an adapter
        to merge on the way; prepared rows for the proof
writes  OUTPUT_DIR/NAME-TYPE.gguf for each type of --quantization; with --create-modelfile a
        Modelfile for the first of them, in the working directory
"""

from pathlib import Path

from slimtune.artifacts import finish_files, refuse_finished_files, refuse_inputs, require
from slimtune.config import Config
from slimtune.console import near, would_write, wrote


def main(config: Config) -> None:
    from slimtune.export import convert, ollama, preflight
    from slimtune.export.architecture import Unsupported
    from slimtune.export.plan import open_source
    from slimtune.models.folders import local_folder

    gguf = config.gguf
    files = convert.files_of(config)
    modelfile = Path.cwd() / "Modelfile" if gguf.wants_modelfile else None
    for needed in filter(None, [gguf.model_path, gguf.lora_model, config.evaluation.test_data]):
        require(needed)
    for file in files:
        manifest, written = convert.manifest_of(file), convert.written_with(file, config)
        refuse_inputs([*written, manifest], convert.read_by(config))
        finish_files(manifest, config, written)
        refuse_finished_files(manifest, config, written)
    if modelfile:
        ollama.require_target(modelfile, config)
    preflight.require_proof(gguf.verify)
    with open_source(local_folder(gguf.model_path), gguf.lora_model) as source:
        try:
            plans = dict(zip(files, convert.plans_for(source, config), strict=True))
        except Unsupported as unknown:
            ask_llama_cpp(source.folder, files, unknown, config)
            return
        preflight.require_disk(plans)
        plan = plans[files[0]]
        said = ollama.modelfile_for(modelfile, files[0], plan, config) if modelfile else ""
        if config.options.dry_run:
            estimates = convert.conversion_lines(plans.values())
            estimates |= preflight.memory_words(source.folder, gguf.verify)
            would_write(*filter(None, [*files, modelfile]), estimates=estimates)
            return
        numbers = convert.convert_and_prove(source, plans, config)
        following = f"python finetune/evaluate_model.py --models {','.join(map(near, files))}"
        if modelfile:
            ollama.write_modelfile(modelfile, said)
            following = " ".join(ollama.create_command(gguf.model_name, modelfile))
        if modelfile and gguf.ollama_create:
            ollama.create(gguf.model_name, modelfile)
            numbers["ollama"] = ollama.try_out(plan, config)
            following = f"ollama run {gguf.model_name}"
    wrote(*filter(None, [*files, modelfile]), numbers=numbers, next=following)


def ask_llama_cpp(model: Path, files: list[Path], unknown: Exception, config: Config) -> None:
    """An architecture that only llama.cpp's own converter knows; LLAMA_CPP_DIR names it."""
    from slimtune.export import llama_tools

    llama_tools.require_hand_over(unknown, config)
    if config.options.dry_run:
        would_write(*files, estimates={"converted by": "llama.cpp's own converter"})
        return
    numbers = llama_tools.hand_over(model, files, config)
    following = f"python finetune/evaluate_model.py --models {','.join(map(near, files))}"
    wrote(*files, numbers=numbers, next=following)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
