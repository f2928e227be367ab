# `make demo`: everything from nothing to answered queries. `make test`: the tests, but for the slow ones.
# `make lint`: style. `make docs`: the reference in docs/api.
# Each makes the environment .venv first, if need be; PYTHON names the interpreter to make it with.

PYTHON ?= python3
# Files of tests run side by side in so many processes, each with one thread of computation.
TEST_PROCESSES ?= 2
FUZZ_INPUTS ?= 10000
VENV := .venv
BIN := $(VENV)/bin
TORCHAO := .cache/torchao
# Wheels that lie on the machine are passed over: a CPU-only torch beside the registry's torchvision cannot work
# (`torchvision::nms` is missing). An empty folder of links outranks one that pip's configuration names.
PIP_INSTALL = PIP_FIND_LINKS=$(abspath $(VENV))/no-links $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# Where the pair does not fit all the same, both are installed again with none of pip's further sources.
REPAIR = PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= $(BIN)/python -m pip install --quiet --force-reinstall
# Once and on all cores: where PYTHONDONTWRITEBYTECODE is set, as containers do, every process would compile it again.
# What is made for other versions of Python does not compile, and is not imported here either.
COMPILE = -$(BIN)/python -m compileall -q -q -j 0 $(VENV)/lib cmfah_hf
FITS = $(BIN)/python -c "import torchvision"
# Assertions are rewritten once, by the first of several runs of tests, also where PYTHONDONTWRITEBYTECODE is set.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile
# Only files that name a marker have tests with it; importing all of them takes longer than many tests.
files_with = $(shell grep --recursive --files-with-matches --include='test_*.py' 'mark\.$(1)' tests)

.PHONY: demo test test-slow test-cluster fuzz lint format docs clean

demo: $(VENV)/.installed
	$(BIN)/cmfah demo --output demo

test: $(VENV)/.installed-for-tests $(TORCHAO)
	-$(BIN)/python tests/models/common_checks.py
	$(PYTEST) -m "not slow and not cluster and not fuzz"

# What takes longer: several processes, whole runs, browsers. These tests wait for others' work, so a third one at a time
# keeps two cores busy.
test-slow: TEST_PROCESSES = 3
test-slow: $(VENV)/.installed-for-tests $(TORCHAO)
	$(PYTEST) -m "slow and not cluster" $(call files_with,slow)

# Minutes of starting, killing and restarting processes on several nodes.
test-cluster: $(VENV)/.installed-for-tests
	$(PYTEST) -m cluster $(call files_with,cluster)

# Mutated files and requests, in a process a core; `make fuzz FUZZ_INPUTS=100000` takes ten times as long.
fuzz: $(VENV)/.installed-for-tests
	$(PYTEST) tests/fuzz --dist load --fuzz-inputs $(FUZZ_INPUTS)

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The reference and the file tables of docs/architecture.md, from the docstrings; the tables of results, from docs/results.
# Tests report stale ones.
docs: $(VENV)/.installed-for-tests
	$(BIN)/python docs/write_api.py
	$(BIN)/python docs/write_architecture.py
	$(BIN)/python docs/write_tables.py

# Apart from the environment, because transformers imports torchao wherever it is installed, in every process. Without it,
# its tests are skipped by name.
$(TORCHAO): | $(BIN)/python
	-$(PIP_INSTALL) --no-deps --target $@ "torchao>=0.15"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(VENV)/no-links

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing cmfah-hf and what it is built on into $(VENV); this downloads some gigabytes."
	$(PIP_INSTALL) --editable .
	$(FITS) 2>/dev/null || $(REPAIR) torch torchvision
	$(FITS)
	$(COMPILE)
	touch $@

$(VENV)/.installed-for-tests: pyproject.toml | $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[dev]"
	$(COMPILE)
	touch $@

clean:
	rm -rf $(VENV) .cache demo
