"""Kept out of a run: what peft and the Trainer import whenever it is installed, used or not.

datasets brings pyarrow and pandas, and no script trains on a `datasets.Dataset`; bitsandbytes is
for weights in 4 or 8 bits and for 8-bit optimizers. Together they are 130 MB of memory and 1.3
seconds of a start (benchmarks/unused_packages.py prints both).
"""

import sys

from slimtune.config import Config


def leave_out_unused(config: Config) -> None:
    """To be called before transformers and peft are first imported.

    An entry of None makes `import` and `find_spec` say that the package is not there, and nothing
    that asks later can have it: this is for the one run of a process that `config` describes.
    """
    for package in unused(config):
        if package not in sys.modules:
            sys.modules[package] = None


def unused(config: Config) -> set[str]:
    """Of datasets and bitsandbytes, what a run with these settings does without."""
    weights = {config.model.quantization, config.distillation.teacher_quantization}
    quantised = weights != {"none"} or config.training.optimizer_of_bitsandbytes
    return {"datasets"} if quantised else {"datasets", "bitsandbytes"}
