#!/usr/bin/env bash
# Everything that can only be known on a GPU, in at most eight minutes: results equal to the CPU's, time, memory.
#
#   benchmarks/gpu.sh [--minutes 8] [--out out/gpu] [--data FOLDER]   # see benchmarks/gpu.py --help
#
# Uses the environment .venv of this checkout, and makes it first where it is missing; that is not part of the minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
  make .venv/installed-from-pyproject
fi
exec .venv/bin/python benchmarks/gpu.py "$@"
