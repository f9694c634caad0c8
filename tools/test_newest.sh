#!/usr/bin/env bash
# Run the tests with the newest versions that pip finds, on the newest Python found:
#   tools/test_newest.sh [--in FOLDER] [PYTEST ARGUMENT ...]
# The environment FOLDER (.venv-newest, 7 GB) is made on the first call and brought up to date on later ones.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=.venv-newest
if [[ ${1:-} == --in ]]; then folder=$2; shift 2; fi

for python in python3.{14..10}; do
    if [[ ! -e $folder/bin/python ]] && $python -c "" 2> /dev/null; then $python -m venv "$folder"; fi
done
pip() { "$folder/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --upgrade pip
pip install --quiet --upgrade --upgrade-strategy eager --editable ".[test]"

"$folder/bin/python" --version
pip list --format freeze
"$folder/bin/python" -m pytest "$@"
