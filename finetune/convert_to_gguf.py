"""Convert a model to GGUF files for llama.cpp and Ollama, and prove that they are the same model.

    python finetune/convert_to_gguf.py
    python finetune/convert_to_gguf.py --model-path models/finetuned/merged_model \\
        --quantization Q4_K_M --create-modelfile --model-name llama2-finetuned
    ollama create llama2-finetuned -f Modelfile      # or --ollama-create does, and compares
    python finetune/convert_to_gguf.py --target-size 1.2GB    # the least loss for that size
    python finetune/convert_to_gguf.py --model-path models/sample/base \\
        --lora-model models/finetuned/lora_adapter --lora-as adapter

reads   a model folder (safetensors), in one pass, whatever its size; with --lora-model an adapter
        to merge on the way, or to write beside its base; prepared rows for the proof
writes  OUTPUT_DIR/NAME-TYPE.gguf for each type of --quantization, or one NAME-SIZE.gguf; with
        --lora-as adapter NAME-lora-F16.gguf, and BASE-TYPE.gguf unless it is there; with
        --create-modelfile a Modelfile for the first of them, in the working directory
"""

from pathlib import Path

from slimtune.artifacts import finish_files, refuse_finished_files, refuse_inputs, require
from slimtune.config import Config
from slimtune.console import table, would_write, wrote


def main(config: Config) -> None:
    from slimtune.data.learned_rows import with_rows_of
    from slimtune.evaluation.following import comparison_command
    from slimtune.export import adapter_export, convert, llama_tools, ollama, outlook, preflight
    from slimtune.export.architecture import Unsupported
    from slimtune.export.plan import open_source
    from slimtune.models.folders import local_folder

    config = convert.named(config)
    gguf = config.gguf
    config = with_rows_of(config, gguf.lora_model, gguf.model_path)
    files = convert.files_of(config)
    modelfile = Path.cwd() / "Modelfile" if gguf.wants_modelfile else None
    for needed in filter(None, [gguf.model_path, gguf.lora_model, config.evaluation.test_data]):
        require(needed)
    for file in files if gguf.lora_as == "merged" else []:
        manifest, written = convert.manifest_of(file), convert.written_with(file, config)
        refuse_inputs([*written, manifest], convert.read_by(config))
        finish_files(manifest, config, written)
        refuse_finished_files(manifest, config, written)
    if modelfile:
        ollama.require_target(modelfile, config)
    preflight.require_proof(gguf)
    if gguf.lora_as == "adapter":
        tell(*adapter_export.deliver(config, modelfile), config)
        return
    following = comparison_command(config, gguf.model_path, *files)
    with open_source(local_folder(gguf.model_path), gguf.lora_model) as source:
        try:
            plans = dict(zip(files, convert.plans_for(source, config), strict=True))
        except Unsupported as unknown:
            numbers = llama_tools.hand_over(source.folder, files, unknown, config)
            tell(files, numbers, following, config)
            return
        preflight.require_disk(plans)
        plan = plans[files[0]]
        said = ollama.modelfile_for(modelfile, files[0], plan, config) if modelfile else ""
        if config.options.dry_run:
            plans = convert.rehearsed(source, plans, config)
            plan = plans[files[0]]
            table(*outlook.table(plan, gguf.model_name), spare=outlook.PICTURES)
            numbers = convert.conversion_lines(plans.values())
            numbers |= outlook.notes(plan, gguf.model_name)
            numbers |= preflight.memory_words(source.folder, gguf.verify)
        else:
            numbers = convert.convert_and_prove(source, plans, config, ollama.recorded(said))
        if modelfile and not config.options.dry_run:
            told, following = ollama.install(modelfile, said, files[0], plan, config)
            numbers |= told
    tell([*filter(None, [*files, modelfile])], numbers, following, config)


def tell(files: list[Path], numbers: dict[str, str], following: str, config: Config) -> None:
    if config.options.dry_run:
        would_write(*files, estimates=numbers)
    else:
        wrote(*files, numbers=numbers, next=following)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
