# `make demo` and `make test` set up the environment by themselves.
#   PYTHON        interpreter that creates the environment (default: the first of python3.11, 3.12, 3.13 that works)
#   VENV          folder of the environment (conda users: make install VENV=$CONDA_PREFIX)
#   TEST_WORKERS  processes that run the tests
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13; do \
	$$name -c "import ensurepip, venv" 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.genval-installed
REQUIREMENTS := requirements/torch.txt requirements/base.txt requirements/openmmlab.txt requirements/constraints.txt pyproject.toml
TEST_WORKERS ?= 2
# Each worker starts with a contiguous part of the tests, so that fixtures are built once per worker. `-rs` lists every
# skipped test with its reason.
PYTEST = $(BIN)/python -m pytest -rs -n $(TEST_WORKERS) --dist worksteal
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

# One thread per process: demo and tests run several processes, and more threads than cores are many times slower.
test check: export OMP_NUM_THREADS = 1

.PHONY: install demo test check lint audit

install: $(STAMP)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python was found: expected python3.11, python3.12 or python3.13 with its\
	 venv module. Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or give PYTHON=PATH." >&2; exit 2; }
	@echo "Creating $(VENV) with $(PYTHON)."
	@$(PYTHON) -m venv $(VENV)

$(STAMP): $(REQUIREMENTS) | $(BIN)/python
	@echo "Installing the packages into $(VENV) (a few minutes the first time)."
	$(PIP) -r requirements/torch.txt
	$(PIP) -r requirements/base.txt -c requirements/constraints.txt
	$(PIP) --no-deps -r requirements/openmmlab.txt
	$(PIP) --no-deps --editable .
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

audit: $(STAMP)
	PYTHON=$(BIN)/python .ci/audit

check: lint
	$(PYTEST) -m "not slow"
