# One environment, .venv, serves every target; it is made again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed-from-pyproject
PYTEST_ARGS ?= -m "not slow"
# A worker for each core, of one thread each. Workers start with equal shares, whole files mostly, whose fixtures are
# then made once; who is done early takes tests from the others.
WORKERS := --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test check docs dist bench format clean

demo: $(STAMP) ## detect nuclei, and find their pixels with a pyramid and single networks; write out/*.png
	$(BIN)/piip demo --out out/demo.png
	$(BIN)/piip demo --task segmentation --out out/nuclei_maps.png

test: $(STAMP) ## PYTEST_ARGS= runs the slow ones too; PYTEST_ARGS="-n 0 ..." runs all in one process
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

check: $(STAMP) ## what must hold before a commit, apart from the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/pylint piip

docs: $(STAMP) ## the documentation site in out/docs; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs out/docs
	@echo "The site is in out/docs/index.html."

dist: $(STAMP) ## source archive and wheel in dist/, checked as PyPI does; VERSION=1.2.3 must be the version that they get
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(if $(VERSION),test -e dist/piip-$(VERSION)-py3-none-any.whl)

# benchmarks/intern_vit_6b.py is left out: it needs 17 GiB of memory.
BENCHMARKS := sampling launches speed training_step runtimes

bench: $(STAMP) ## time and memory of the models beside their multiply-adds and floors; writes out/*.json and out/*.png
	@for name in $(BENCHMARKS); do echo "benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit 1; done

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist out *.egg-info

$(STAMP): pyproject.toml
	@echo "Making the environment .venv, once: about 3 GB to download and 7 GB on disk with the CUDA build of PyTorch."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable ".[dev]"
	touch $@
