"""What a run saves that leaves out packages it does without: memory and CPU time of the imports.

python benchmarks/unused_packages.py
"""

import sys

from measuring import machine, measure, table

IMPORTS = "import peft, transformers.trainer"
LEFT_OUT = f"""
from slimtune.config import Config
from slimtune.machine.process import leave_out_unused
leave_out_unused(Config())
{IMPORTS}
"""


def main() -> None:
    print(machine())
    sides = {"all that is installed": IMPORTS, "what a run uses": LEFT_OUT}
    costs = {name: measure([sys.executable, "-c", code]) for name, code in sides.items()}
    lines = [[name, cost.megabytes, cost.cpu] for name, cost in costs.items()]
    table("peft and the Trainer, imported", ["", "peak MB", "CPU s"], lines)


if __name__ == "__main__":
    main()
