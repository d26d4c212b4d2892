"""Write the embedded example: instruction rows, plain text, and two small Llamas to go with them.

    python finetune/create_sample_data.py
    python finetune/create_sample_data.py --rows 8000 --seed 7
    python finetune/create_sample_data.py --kind all          # the same rows in other shapes
    python finetune/create_sample_data.py --train-models      # both models again, from nothing

reads   nothing
writes  data/raw_data.json, data/raw_data.csv, data/sample_text.txt, and the files of --kind,
        models/sample/base (reads text, follows no instructions), models/sample/teacher

What an earlier run finished with the same settings is kept, so a stopped run simply goes on.
"""

from slimtune.config import Config
from slimtune.console import would_write, wrote
from slimtune.settings.commands import next_command


def main(config: Config) -> None:
    from slimtune.sample import example, make, missing

    parts = missing(config)
    if config.options.dry_run:
        would_write(*(part.output for part in parts), estimates={"rows": config.sample.rows})
        return
    numbers = {}
    for part in parts:
        numbers |= make(part, config)
    wrote(
        *(part.output for part in parts),
        numbers=numbers,
        next=next_command("prepare_data", config, {"data.input": example(config)}),
    )


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
