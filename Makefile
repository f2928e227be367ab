# `make demo`: everything from nothing to answered queries. `make test`: the tests, but for the slow ones.
# `make lint`: style. `make docs`: the reference in docs/api.
# Each makes the environment .venv first, if need be; PYTHON names the interpreter to make it with.

PYTHON ?= python3
# Files of tests run side by side in so many processes, each with one thread of computation.
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Wheels that lie on the machine are passed over: a CPU-only torch beside the registry's torchvision cannot work
# (`torchvision::nms` is missing). An empty folder of links outranks one that pip's configuration names.
PIP_INSTALL = PIP_FIND_LINKS=$(abspath $(VENV))/no-links $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# Where the pair does not fit all the same, both are installed again with none of pip's further sources.
REPAIR = PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= $(BIN)/python -m pip install --quiet --force-reinstall
FITS = $(BIN)/python -c "import torchvision"
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

.PHONY: demo test test-slow test-cluster lint format docs clean

demo: $(VENV)/.installed
	$(BIN)/cmfah demo --output demo

test: $(VENV)/.installed-for-tests
	-$(BIN)/python tests/models/common_checks.py
	$(PYTEST) -m "not slow and not cluster"

# What takes longer: several processes, whole runs, browsers.
test-slow: $(VENV)/.installed-for-tests
	$(PYTEST) -m "slow and not cluster"

# Minutes of starting, killing and restarting processes on several nodes.
test-cluster: $(VENV)/.installed-for-tests
	$(PYTEST) -m cluster

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The reference, from the docstrings. A test says when it is stale.
docs: $(VENV)/.installed-for-tests
	$(BIN)/python docs/write_api.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(VENV)/no-links

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing cmfah-hf and what it is built on into $(VENV); this downloads some gigabytes."
	$(PIP_INSTALL) --editable .
	$(FITS) 2>/dev/null || $(REPAIR) torch torchvision
	$(FITS)
	touch $@

$(VENV)/.installed-for-tests: pyproject.toml | $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .cache demo
