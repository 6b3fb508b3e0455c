# Works on a fresh machine with Python 3.11 or newer, make and a package index. Everything lands in .venv.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# CPU wheels of torch: the default index has CUDA builds, which bring gigabytes. For a GPU: make install TORCH_INDEX=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Python compiles what it imports: compiling everything at once would be half of the installation.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile

ifneq ($(wildcard ../shared/data),)
RAYLENS_TEST_DATA ?= $(abspath ../shared/data)
endif
export RAYLENS_TEST_DATA
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install demo test test-long lint format bench fuzz audit chaos clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or 3.12 is needed (make PYTHON=/path/to/python3.12 install)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --retries 2 --no-deps -c constraints.txt torch torchvision \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(PIP) -c constraints.txt -e '.[test]'
	@touch $(STAMP)

demo: install
	$(BIN)/raylens demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Two at a time: most of the time passes in waiting for real processes to start.
test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

# What is killed, lost and replaced again and again, a minute and more each: CI runs these after the others.
test-long: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m long

# More of what tests/faults/test_fuzz*.py try, other inputs each time; and other examples of all properties.
FUZZ := tests/faults/test_fuzz.py tests/faults/test_fuzz_data.py
fuzz: export RAYLENS_FUZZ := $(or $(INPUTS),2000)
fuzz: install
	$(BIN)/python -m pytest -q -s -W ignore --timeout=3600 $(FUZZ)
	$(BIN)/python -m pytest -q -n 2 -W ignore -m hypothesis $(addprefix --ignore=,$(FUZZ))

# Known holes in what the pinned versions bring. Where its database cannot be reached, it says so and that is all.
audit: install
	@$(BIN)/python .ci/audit.py constraints.txt

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	@for script in $$(ls tests/bench/*.py); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# Kills processes at random, 200 of them or as many as 15 minutes allow, which ends in an error; then a line of figures.
chaos: install
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(BIN)/python tests/faults/chaos.py $(CHAOS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
