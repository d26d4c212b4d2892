"""Convert a model to one GGUF file for llama.cpp and Ollama, and prove that it is the same model.

    python finetune/convert_to_gguf.py
    python finetune/convert_to_gguf.py --model-path models/finetuned/merged_model \\
        --quantization Q4_K_M --create-modelfile --model-name llama2-finetuned
    ollama create llama2-finetuned -f Modelfile      # or --ollama-create does it, and tries it out

reads   a model folder (safetensors), in one pass, whatever its size; prepared rows for the proof
writes  OUTPUT_DIR/NAME-TYPE.gguf; with --create-modelfile a Modelfile in the working directory
"""

from pathlib import Path

from slimtune.artifacts import refuse_finished_files, require, stage_files
from slimtune.config import Config
from slimtune.console import near, size, would_write, wrote


def main(config: Config) -> None:
    from slimtune.export import ollama, preflight, templates
    from slimtune.models.hub import resolve

    gguf = config.gguf
    file = gguf.output_dir / f"{gguf.model_name}-{gguf.quantization}.gguf"
    manifest = file.with_name(f"{file.stem}_run.json")
    modelfile = Path.cwd() / "Modelfile" if gguf.create_modelfile or gguf.ollama_create else None
    for needed in filter(None, [gguf.model_path, config.evaluation.test_data]):
        require(needed)
    refuse_finished_files(manifest, config)
    if modelfile:
        ollama.require(modelfile, config)
    model = resolve(gguf.model_path)
    preflight.require_proof(gguf.verify)
    plan = preflight.preflight(model, gguf.quantization)
    preflight.require_disk(plan, file)
    said = ollama.modelfile_for(modelfile, file, plan, config) if modelfile else ""
    if config.options.dry_run:
        would_write(*filter(None, [file, modelfile]), estimates=preflight.words(plan))
        return

    from slimtune.export import gguf_writer, proving  # torch and transformers: seconds

    with stage_files("convert_to_gguf", manifest, config, inputs=[gguf.model_path]) as stage:
        written = stage.folder / file.name
        report = gguf_writer.convert(model, written, gguf.quantization, name=gguf.model_name)
        stage.metrics.update(vars(report))
        with proving.failures_kept(written, file):
            template = templates.chosen(model, config.model.prompt_template)
            truth = proving.ask_model(model, template, config)
            proof = proving.prove(written, file, gguf.quantization, truth)
        stage.metrics.update(proof)
    numbers = preflight.words(plan) | {
        "on disk": f"{size(report.bytes)} for {report.parameters:,} parameters",
        "proof": proving.words(proof),
    }
    following = f"python finetune/evaluate_model.py --models {near(file)}"
    if modelfile:
        ollama.write(modelfile, said)
        following = " ".join(ollama.create_command(gguf.model_name, modelfile))
    if modelfile and gguf.ollama_create:
        ollama.create(gguf.model_name, modelfile)
        numbers["ollama"] = ollama.try_out(proving.conversations(config)[0], plan, config)
        following = f"ollama run {gguf.model_name}"
    wrote(*filter(None, [file, modelfile]), numbers=numbers, next=following)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
