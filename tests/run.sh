#!/usr/bin/env bash
# Run the tests in .venv, made or reused: bash tests/run.sh [--slow] [PYTEST ARGUMENTS]
#
# Tests of more than a few seconds are left out without --slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/venv.sh
install_project dev

selection=(-m "not slow")
if [ "${1:-}" = --slow ]; then
    selection=()
    shift
fi
# Two processes of one thread each: torch's threads would only get in each other's way.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 "${selection[@]}" "$@"
