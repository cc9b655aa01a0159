#!/usr/bin/env bash
# Trains every model of configs/demo/ on associative recall, loads the saved checkpoints again, evaluates them, prints one
# table and draws one figure. Everything lands in runs/demo/, which a new run replaces.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh

# The task is made on this machine: nothing is asked of the Hub.
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
python=.venv/bin/python
runs=runs/demo
rm -rf "$runs"

for config in configs/demo/*.yaml; do
    architecture=$(basename "$config" .yaml)
    echo "demo: training $architecture ($config -> $runs/$architecture)"
    "$python" training/train.py --config "$config" --run.output_dir "$runs/$architecture"
done

echo "demo: evaluating the saved checkpoints ($runs/evaluation)"
"$python" evaluation/evaluate.py --model "$runs"/*/final --suite mqar --output_dir "$runs/evaluation"

"$python" evaluation/demo_table.py "$runs"
