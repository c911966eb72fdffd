#!/usr/bin/env bash
# Remake all of this example: the images, drawn into quickstart-output/streets/, and the weights, trained on others by
# day (a few minutes). Equal to what is checked in up to rounding, which differs between machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/venv.sh
install_project

.venv/bin/python examples/streets/draw.py quickstart-output/streets
.venv/bin/python examples/streets/train.py examples/streets/streetnet.pth
