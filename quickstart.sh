#!/usr/bin/env bash
# From nothing to a small fine-tuned Llama as GGUF: quickstart.py, with the newest Python that fits.
#   bash quickstart.sh               a second run goes on where something is missing
#   bash quickstart.sh --overwrite   makes everything again
set -euo pipefail
cd "$(dirname "$0")"
bash venv.sh .venv      # with python3.13, 3.12 or 3.11, or a python3 that is no older
exec .venv/bin/python quickstart.py "$@"
