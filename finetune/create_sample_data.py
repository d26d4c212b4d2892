"""Write the embedded example: instruction rows, plain text, and two small Llamas to go with them.

    python finetune/create_sample_data.py
    python finetune/create_sample_data.py --rows 8000 --seed 7
    python finetune/create_sample_data.py --train-models      # both models again, from nothing

reads   nothing
writes  data/raw_data.json, data/raw_data.csv, data/sample_text.txt,
        models/sample/base (reads text, follows no instructions), models/sample/teacher
"""

from slimtune.artifacts import refuse_finished, refuse_finished_files, stage_files, stage_folder
from slimtune.config import Config
from slimtune.console import near, note, would_write, wrote


def main(config: Config) -> None:
    import json

    from slimtune.data import preparation, tables
    from slimtune.sample import rows, text, unpack

    sample, data = config.sample, config.data
    manifest = sample.output_dir / "raw_data_run.json"
    refuse_finished(sample.models_dir, config)
    refuse_finished_files(manifest, config)
    raw = sample.output_dir / "raw_data.json"
    if config.options.dry_run:
        would_write(raw, sample.models_dir, estimates={"rows": sample.rows})
        return

    with stage_files("create_sample_data", manifest, config) as stage:
        written = rows(sample.seed, sample.rows)
        (stage.folder / raw.name).write_text(
            json.dumps(written, ensure_ascii=False, indent=1), encoding="utf-8"
        )
        tables.write_csv(stage.folder / "raw_data.csv", written)
        with (stage.folder / "sample_text.txt").open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in text(sample.seed, sample.text_lines))
        stage.metrics["rows"] = len(written)

    with stage_folder("create_sample_data", sample.models_dir, config, inputs=[raw]) as stage:
        if sample.train_models:
            from slimtune.sample.pretraining import train_models

            note("training both models from nothing: see finetune/slimtune/sample/README.md")
            ratios = (1 - data.validation_ratio - data.test_ratio,)
            ratios += (data.validation_ratio, data.test_ratio)
            prepared = preparation.prepare(
                raw, ratios=ratios, seed=data.seed, group_column=data.group_column
            )
            lessons = [row["messages"] for row in prepared.splits["train"]]
            train_models(stage.folder, sample.seed, lessons)
        else:
            unpack(stage.folder)

    wrote(
        raw,
        sample.models_dir,
        numbers={"rows": sample.rows},
        next=f"python finetune/prepare_data.py --input {near(raw)}",
    )


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
