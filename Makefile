# Two commands for a fresh clone: `make demo` and `make test`. Each makes its environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types unit benchmark clean

demo: $(VENV)/.user
	$(BIN)/replica-detection demo --output demo

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest

benchmark: $(VENV)/.dev
	$(BIN)/python Testing/Benchmarks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Editable, so that the command always runs the code of this checkout.
$(VENV)/.user: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.dev: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.user

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache
