#!/usr/bin/env bash
# From nothing to a small fine-tuned Llama as GGUF, on the embedded example. Reading it is the tutorial.
#   bash quickstart.sh               a second run goes on where something is missing
#   bash quickstart.sh --overwrite   makes everything again
set -euo pipefail
cd "$(dirname "$0")"
overwrite=${1:-}
if [ -n "$overwrite" ] && [ "$overwrite" != --overwrite ]; then
  echo "usage: bash quickstart.sh [--overwrite]" >&2
  exit 2
fi

# --- installation: once, and again when requirements.txt has changed ---------------------------
bash venv.sh .venv      # with python3.13, 3.12 or 3.11, or a python3 that is no older
if ! cmp -s requirements.txt .venv/installed.txt; then
  echo "installing requirements.txt into .venv"
  .venv/bin/python -m pip install -q -r requirements.txt
  cp requirements.txt .venv/installed.txt
fi
export PATH="$PWD/.venv/bin:$PATH"
SECONDS=0

# step RESULT COMMAND...: shows the command and runs it, unless its result is there already.
step() {
  local result=$1
  shift
  if [ -e "$result" ] && [ "$overwrite" != --overwrite ]; then
    printf '\nexists: %s (bash quickstart.sh --overwrite makes it again)\n' "$result"
    return
  fi
  printf '\n$ %s\n' "$*"
  "$@" $overwrite
}

# --- 1. the example: rows with answers that a program can check, and two small Llamas ----------
step models/sample/run.json python finetune/create_sample_data.py

# --- 2. raw rows -> train, validation, test; no fact of the test is ever asked in training -----
step data/finetune/train_run.json python finetune/prepare_data.py \
  --input data/raw_data.json --input-format json --format-type alpaca \
  --output-dir data/finetune --output-name train

# --- 3. fine-tune the base model, and see what it gained ---------------------------------------
step models/finetuned/lora_adapter/run.json python finetune/train_lora.py
step models/evaluation/fine-tuned/evaluation_results.csv python finetune/evaluate_model.py \
  --output models/evaluation/fine-tuned/evaluation_results.csv
step models/finetuned/merged_model/run.json python finetune/evaluate_model.py --merge

# --- 4. make it smaller, and let the teacher win back what that cost ----------------------------
step models/pruned/run.json python finetune/model_pruning.py
step models/distilled/run.json python finetune/knowledge_distillation.py

# --- 5. or all three in one run, from the base model on ----------------------------------------
step models/pruned_distilled/final/run.json python finetune/train_pruned_distilled.py \
  --stages prune,cache,distil,lora,merge     # its comparison, too, is in step 7

# --- 6. one file for llama.cpp and Ollama, and the Modelfile that Ollama reads it by -----------------
step models/gguf/slimtune-sample-Q4_K_M.gguf python finetune/convert_to_gguf.py \
  --model-path models/finetuned/merged_model --quantization Q4_K_M --create-modelfile

# --- 7. everything side by side ------------------------------------------------------------------
models=models/finetuned/merged_model,models/pruned,models/distilled,models/pruned_distilled/final
models=$models,models/gguf/slimtune-sample-Q4_K_M.gguf
step models/evaluation/evaluation_results.csv python finetune/evaluate_model.py --models "$models"

printf '\ndone in %d min %d s; the report: models/evaluation/report.html\n' \
  $((SECONDS / 60)) $((SECONDS % 60))
cat <<'END'

to talk to what was made, in Ollama or here:
  ollama create slimtune-sample -f Modelfile
  ollama run slimtune-sample
  .venv/bin/python finetune/evaluate_model.py --interactive --models models/gguf/slimtune-sample-Q4_K_M.gguf
END
