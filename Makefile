# `make demo` and `make test` are all that a fresh machine with Python >= 3.11 needs.
# Both share .venv: the demo installs what the package needs to run, the tests add the tools.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PINNED := pyproject.toml constraints.txt
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Nothing here needs a model hub, and a forgotten download should fail at once.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help test lint format demo docs bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

test: $(VENV)/.stamp-dev lint ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: $(VENV)/.stamp-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(VENV)/.stamp-run ## the main job on the embedded model, and a feature circuit; leaves out/demo/report.html
	$(BIN)/crosspatch features circuit --model embedded --task agreement-nounpp --n 64 --nodes 60 --steps 5 \
	  --exact 30 --random 5 --card-tokens 3000 --threads 1 --out out/demo/features --overwrite
	$(BIN)/crosspatch localize --model embedded --task ioi --out out/demo --overwrite

docs: $(VENV)/.stamp-docs ## the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Documentation: $(CURDIR)/site/index.html"

bench: .venv-bench/.stamp ## speed against a peer, in an environment of its own
	TQDM_DISABLE=1 .venv-bench/bin/python -m benchmarks.sweeps --threads 2 --json out/benchmarks/sweeps.json

clean: ## remove the environments and everything that was made
	rm -rf $(VENV) .venv-bench out site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is brought up to date when the pins change, and only then.
$(VENV)/.stamp-python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "Crosspatch needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + \
	  ". Fix: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-python $(PINNED)
	$(PIP) -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-python $(PINNED)
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-docs: $(VENV)/.stamp-python $(PINNED)
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.stamp-run

.venv-bench/.stamp: $(VENV)/.stamp-python pyproject.toml benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet -r benchmarks/requirements.txt -e .
	@touch $@
