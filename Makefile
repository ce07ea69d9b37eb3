# Two commands do all their own set-up on a fresh machine that has python3, venv and make:
#   make demo    the main job on embedded parts
#   make test    every test

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.installed-demo
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.PHONY: demo test quick lint bench faults clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Strongroom needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml setup.py src/strongroom/_kernel.c src/client/wal.c | $(BIN)/python
	$(PIP) '.[dev]'
	touch $(STAMP) $(DEMO)

# The demo needs less than the tests do, and should not make anybody wait for it.
$(DEMO): pyproject.toml setup.py src/strongroom/_kernel.c src/client/wal.c | $(BIN)/python
	$(PIP) '.[demo,s3]'
	touch $@

demo: $(DEMO)
	$(BIN)/strongroom demo

test: $(STAMP)
	$(BIN)/python tests/prepare.py
	$(MAKE) --no-print-directory lint
	# What fails beside everything else is run once more, alone, and named by the first run: servers
	# that are killed and started side by side are not always in time on two cores.
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not sweep' || \
	$(BIN)/python -m pytest -m 'not sweep' --last-failed --last-failed-no-failures none

quick: $(STAMP)
	$(BIN)/python -m pytest -x -q -m 'not slow and not sweep' tests/unit tests/contracts tests/engine

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# An installed program has its bytecode; an editable one would compile itself in every run.
bench: $(STAMP)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q src
	$(BIN)/python -m bench

faults: $(STAMP)
	$(BIN)/python -m pytest -v -n 2 -m 'sweep' tests

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
