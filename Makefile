# Two commands do all their own set-up on a fresh machine that has python3, venv and make:
#   make demo    the main job on embedded parts
#   make test    every test

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test quick lint bench faults clean

$(STAMP): pyproject.toml src/strongroom/_kernel.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Strongroom needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/strongroom demo

test: $(STAMP)
	$(BIN)/python tests/prepare.py
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not sweep'

quick: $(STAMP)
	$(BIN)/python -m pytest -x -q -m 'not slow and not sweep' tests/unit tests/contracts tests/engine

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m bench

faults: $(STAMP)
	$(BIN)/python -m pytest -n 2 --timeout 7200 -m 'sweep' tests/faults

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
