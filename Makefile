# `make demo` and `make test` do all the set-up themselves. PYTHON picks the interpreter that makes the environment,
# VENV the environment (conda users: make install VENV=$CONDA_PREFIX).
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.genval-installed
REQUIREMENTS := requirements/torch.txt requirements/base.txt requirements/openmmlab.txt requirements/constraints.txt pyproject.toml
TEST_WORKERS ?= 2
# Every worker begins with a half of the tests as they are listed, and so imports and makes for them what they share.
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

# One thread a process: the demo and the tests run several processes, and more threads than cores is many times slower.
test check: export OMP_NUM_THREADS = 1

.PHONY: install demo test check lint

install: $(STAMP)

$(STAMP): $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/base.txt -c requirements/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/openmmlab.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(STAMP)
	$(BIN)/python reproduce.py --preset mini --domains fog,night --jobs 2

test: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m "not slow"
