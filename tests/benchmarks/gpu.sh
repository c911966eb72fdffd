#!/usr/bin/env bash
# All that a machine with one NVIDIA GPU is to tell, in 12 minutes at most: bash tests/benchmarks/gpu.sh [FOLDER]
#
# Parts run in this order, each within its own limit; one that fails or runs out of time ends alone, and keeps what it has
# measured. What they print and their JSON files are in FOLDER (default: gpu-results). PYTHON names the Python that has
# torch and this project (default: .venv's).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out="${1:-gpu-results}"
python="${PYTHON:-.venv/bin/python}"
mkdir -p "$out"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
failed=()

part() { # NAME SECONDS ARGUMENTS OF PYTHON
    local name="$1" limit="$2" began=$SECONDS status
    shift 2
    echo "== $name: at most $limit s"
    timeout --kill-after=5 "$limit" "$python" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: $((SECONDS - began)) s, $([ "$status" = 0 ] && echo done || echo "exit status $status")"
    [ "$status" = 0 ] || failed+=("$name")
}

"$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' | tee "$out/machine.log" || exit 1

benchmarks=tests/benchmarks
part graph-tests 30 -m pytest -q -n 0 tests/runtime/test_graphs.py tests/finetuning/test_blda.py
part kernel-tests 150 -m pytest -q -n 0 tests/core/test_kernels.py -k "cuda or chosen"
part kernels-float32 50 "$benchmarks/kernels.py" --device cuda --dtype float32 --json "$out/kernels-float32.json"
part kernels-float16 50 "$benchmarks/kernels.py" --device cuda --dtype float16 --json "$out/kernels-float16.json"
for case in segformer-b0-jpg segformer-b5-jpg; do
    part "commands-$case" 150 "$benchmarks/commands.py" --device cuda --case "$case" --count 24 --repeats 3 --json "$out/$case.json"
done
part finetune 120 "$benchmarks/finetune.py" --device cuda --json "$out/finetune.json"

echo "== $SECONDS s in all, results in $out; ${#failed[@]} parts failed or ran out of time: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
