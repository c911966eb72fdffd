#!/usr/bin/env bash
# The main job on the embedded example, from nothing: a network trained on streets by day meets streets at dusk.
#
# Needs Python 3.11 or newer with pip, and git; makes .venv and quickstart-output/, and can be run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/venv.sh
install_project

output=quickstart-output
model=examples/streets/streets.toml
images=$output/streets/dusk/images
labels=$output/streets/dusk/labels
run() {
    echo "\$ blda $*"
    .venv/bin/blda "$@"
}

.venv/bin/python examples/streets/draw.py $output/streets
run collect-stats --model $model --images $images --output $output/dusk.h5 --overwrite
run align --model $model --images $images --stats $output/dusk.h5 --output $output/aligned --overwrite
run export --model $model --images $images --stats $output/dusk.h5 --output $output/exported --format pt2 --argmax \
    --overwrite
frame=$(find $images -name '*.png' | sort | head -n 1)
.venv/bin/python -W ignore examples/without_blda.py $output/exported/network.pt2 "$frame" $output/without_blda.png
echo "Without blda, examples/without_blda.py wrote the classes of $frame to $output/without_blda.png"
# The labels only score the result; nothing above has seen them.
run report --stats $output/dusk.h5 --aligned $output/aligned --labels $labels --output $output/report --overwrite
echo "The report is $PWD/$output/report/report.html"
