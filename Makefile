# Two commands set everything up on a fresh machine: `make train` and `make test`.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: install train test test-slow test-browser test-driving chaos soak lint clean

train: install  ## the main job on the quick start: data, offline phase, online phase, table, pictures
	$(BIN)/dipole train quickstart

test: install lint  ## linters, types and every test but the long ones; of three workers one often waits for processes
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: install  ## the long tests
	$(BIN)/python -m pytest -m slow

test-browser: install  ## MLflow's page in a real browser (Debian: apt-get install chromium)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[browser]"
	$(BIN)/python -m pytest -m browser tests/browser

test-driving: install  ## the tests of driving, those that run SUMO too (150 MB to download)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[driving]"
	$(BIN)/python -m pytest tests/driving

CHAOS_RESULTS := $(CURDIR)/build/chaos.jsonl

chaos: install  ## everything that may break is broken (40 minutes); soak, random kills and the rest run side by side
	rm -rf build/chaos.jsonl build/soak && mkdir -p build
	DIPOLE_CHAOS_RESULTS=$(CHAOS_RESULTS) DIPOLE_SOAK_OUT=$(CURDIR)/build/soak \
		$(BIN)/python -m pytest -m chaos -n 3 --dist loadfile --no-loadscope-reorder --durations=0 tests/chaos
	$(BIN)/python -m benchmarks.recovery $(CHAOS_RESULTS) --out build

SOAK_MINUTES ?= 30
SOAK_OUT ?= build/soak

soak: install  ## only the soak: make soak SOAK_MINUTES=120
	rm -rf $(SOAK_OUT)
	DIPOLE_SOAK_MINUTES=$(SOAK_MINUTES) DIPOLE_SOAK_OUT=$(abspath $(SOAK_OUT)) \
		$(BIN)/python -m pytest -m chaos tests/chaos/test_soak.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install one, or give it: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
