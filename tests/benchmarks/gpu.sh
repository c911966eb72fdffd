#!/usr/bin/env bash
# All that a machine with one NVIDIA GPU is to tell, in 12 minutes at most: bash tests/benchmarks/gpu.sh [FOLDER]
#
# Parts run in this order, each within its own limit; one that fails or runs out of time ends alone, and keeps what it has
# measured. What they print and their JSON files are in FOLDER (default: gpu-results). PYTHON names the Python that has
# torch and this project (default: .venv's), NORMS_OF the network of which norms are mixed (default: ESPNet).
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
normed="${NORMS_OF:-examples/espnet/espnet.toml}" # ESPNet with random weights, which take as long
first="offset or argmax or hard or location or chosen"

# 715 s in all. What is new or claimed comes first, and what only widens it last.
part graph-tests 60 -m pytest -q -n 0 tests/segmenters/test_graphs_on_a_gpu.py tests/runtime/test_graphs.py tests/finetuning/test_blda.py
part kernel-tests 90 -m pytest -q -n 0 tests/core/test_kernels.py -k "(triton-cuda or chosen) and ($first)"
part norms 20 "$benchmarks/norms.py" "$normed" --device cuda --size 1024x2048 --repeats 21
part norms-amp 20 "$benchmarks/norms.py" "$normed" --device cuda --size 1024x2048 --repeats 21 --amp
part commands-segformer-b0-jpg 110 "$benchmarks/commands.py" --device cuda --case segformer-b0-jpg --count 40 --repeats 3 --json "$out/segformer-b0-jpg.json"
part commands-segformer-b5-jpg 115 "$benchmarks/commands.py" --device cuda --case segformer-b5-jpg --count 40 --repeats 3 --json "$out/segformer-b5-jpg.json"
part kernels-float32 35 "$benchmarks/kernels.py" --device cuda --dtype float32 --json "$out/kernels-float32.json"
part kernels-float16 35 "$benchmarks/kernels.py" --device cuda --dtype float16 --json "$out/kernels-float16.json"
part finetune 70 "$benchmarks/finetune.py" --device cuda --json "$out/finetune.json"
part more-kernel-tests 90 -m pytest -q -n 0 tests/core/test_kernels.py -k "triton-cuda and not ($first)"
part torch-kernel-tests 30 -m pytest -q -n 0 tests/core/test_kernels.py -k torch-cuda
export BLDA_GRAPHS=off
part commands-without-graphs 40 "$benchmarks/commands.py" --device cuda --case segformer-b0-jpg --count 40 --repeats 1 --json "$out/without-graphs.json"

echo "== $SECONDS s in all, results in $out; ${#failed[@]} parts failed or ran out of time: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
