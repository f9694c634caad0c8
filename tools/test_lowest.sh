#!/usr/bin/env bash
# Run the tests with the lowest versions that pyproject.toml names, on the oldest Python found:
#   tools/test_lowest.sh [--in FOLDER] [PYTEST ARGUMENT ...]
# The environment FOLDER (.venv-lowest, 7 GB) is made on the first call and follows pyproject.toml on later ones.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=.venv-lowest
if [[ ${1:-} == --in ]]; then folder=$2; shift 2; fi

for python in python3.{10..14}; do
    if [[ ! -e $folder/bin/python ]] && $python -c "" 2> /dev/null; then $python -m venv "$folder"; fi
done
pip() { "$folder/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --upgrade pip packaging
pip install --quiet --no-deps --editable .
"$folder/bin/python" - > "$folder/lowest.txt" <<'EOF'
from importlib.metadata import requires

from packaging.requirements import Requirement

for requirement in map(Requirement, requires("piip")):
    for bound in requirement.specifier:
        if bound.operator == ">=":
            print(f"{requirement.name}=={bound.version}")
EOF
pip install --quiet --constraint "$folder/lowest.txt" --editable ".[test]"

"$folder/bin/python" --version
pip list --format freeze
"$folder/bin/python" -m pytest "$@"
