"""Convert a model to one GGUF file for llama.cpp and Ollama, and prove that it is the same model.

    python finetune/convert_to_gguf.py
    python finetune/convert_to_gguf.py --model-path models/finetuned/merged_model \\
        --quantization Q4_K_M --create-modelfile --model-name llama2-finetuned
    ollama create llama2-finetuned -f Modelfile

reads   a model folder (safetensors), in one pass, whatever its size; prepared rows for the proof
writes  OUTPUT_DIR/NAME-TYPE.gguf; with --create-modelfile a Modelfile in the working directory
"""

from pathlib import Path

from slimtune.artifacts import refuse_finished_files, require, stage_files
from slimtune.config import Config
from slimtune.console import near, note, size, would_write, wrote


def main(config: Config) -> None:
    from slimtune.export import gguf_writer, ollama, preflight, proving
    from slimtune.models.hub import resolve

    gguf = config.gguf
    file = gguf.output_dir / f"{gguf.model_name}-{gguf.quantization}.gguf"
    manifest = file.with_name(f"{file.stem}_run.json")
    modelfile = Path.cwd() / "Modelfile" if gguf.create_modelfile else None
    for needed in filter(None, [gguf.model_path, config.evaluation.test_data]):
        require(needed)
    refuse_finished_files(manifest, config)
    if modelfile:
        ollama.refuse_existing(modelfile, config)
    model = resolve(gguf.model_path)
    plan = preflight.preflight(model, gguf.quantization)
    if config.options.dry_run:
        would_write(file, estimates={"on disk": size(plan.bytes), "memory": "about 0.3 GB"})
        return

    with stage_files("convert_to_gguf", manifest, config, inputs=[gguf.model_path]) as stage:
        written = stage.folder / file.name
        report = gguf_writer.convert(model, written, gguf.quantization, name=gguf.model_name)
        stage.metrics.update(vars(report))
        proof = proving.prove(written, model, config)
        stage.metrics.update(proof)
    if modelfile:
        ollama.write_modelfile(modelfile, file, model, config)
        note(f"ollama create {gguf.model_name} -f {near(modelfile)}")

    wrote(
        *([file, modelfile] if modelfile else [file]),
        numbers={
            "on disk": f"{size(report.bytes)} for {report.parameters:,} parameters",
            "types": ", ".join(f"{count} {name}" for name, count in report.types.items()),
            "fallbacks": ", ".join(report.fallbacks) or "none",
            "proof": proving.words(proof),
        },
        next=f"python finetune/evaluate_model.py --models {near(file)}",
    )


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
