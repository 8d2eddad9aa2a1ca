# Two commands for a fresh clone: `make demo` and `make test`. Each makes its environment in .venv first. `make test-all`
# runs the tests marked `confirms` as well: they confirm at full size what faster tests hold in small.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

FAST := -m 'not confirms'

.PHONY: demo test test-all lint types docs tutorials unit pydicom3 benchmark clean

demo: $(VENV)/.user
	$(BIN)/replica-detection demo --output demo

test: lint types docs unit pydicom3

test-all: FAST :=
test-all: test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folder of the server's package has another name than the package, which mypy cannot know.
types: $(VENV)/.dev $(VENV)/.server
	mkdir -p $(VENV)/typing && ln -sfn ../../MonaiLabelApp $(VENV)/typing/replica_detection_server
	MYPYPATH=$(VENV)/typing $(BIN)/mypy -p replica_detection -p replica_detection_server

# A broken link or reference fails. The page is site/index.html.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Runs the tutorials as a whole and renews what their pages show: output and pictures.
tutorials: $(VENV)/.docs
	$(BIN)/python docs/hooks/tutorials.py docs/tutorials/*.py

unit: $(VENV)/.dev $(VENV)/.server $(VENV)/.slicer $(VENV)/.docs
	$(BIN)/python -m pytest -n 2 --dist loadfile $(FAST)

# The server keeps pydicom 2, the command line alone takes pydicom 3: both read the same values.
pydicom3: $(VENV)/.dev $(VENV)/pydicom3
	PYTHONPATH=$(VENV)/pydicom3 $(BIN)/python -m pytest -q Testing/Core/io/test_dicom*.py

benchmark: $(VENV)/.dev $(VENV)/.server
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

$(VENV)/.docs: setup.py constraints.txt | $(VENV)/.dev
	$(PIP) -e ".[docs]"
	touch $@

# The complete set (`.[server]`) adds 1.6 GB that the server never loads.
$(VENV)/.server: requirements-server-bare.txt requirements-server-lean.txt requirements-test.txt | $(VENV)/.dev
	$(PIP) --no-deps -r requirements-server-bare.txt
	$(PIP) -r requirements-server-lean.txt -r requirements-test.txt
	touch $@

$(VENV)/pydicom3: | $(VENV)/.dev
	$(PIP) --no-deps --target $@ "pydicom>=3,<4"

$(VENV)/.slicer: requirements-slicer-test.txt | $(VENV)/.dev
	$(PIP) -r requirements-slicer-test.txt
	touch $@

clean:
	rm -rf $(VENV) demo build dist site .mypy_cache .pytest_cache .ruff_cache
