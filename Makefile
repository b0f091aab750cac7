# headrace: `make serve` serves the built-in model, `make test` runs every check. `make help` lists all.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pins for an install that anyone can repeat; the package itself asks for ranges.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input -qq -c constraints.txt
# What, when changed, makes an installed tree stale. Python sources do not: the install is editable.
INSTALL_INPUTS := pyproject.toml constraints.txt constraints-dev.txt $(wildcard CMakeLists.txt) \
	$(shell find src -name '*.cpp' -o -name '*.h' -o -name '*.hpp' | sort)

# What is not compiled at installation is compiled by the first process that imports it, not by all.
export PYTHONDONTWRITEBYTECODE :=

MODEL ?=
ARGS ?=
PYTEST_ARGS ?=

.PHONY: help serve chat doctor test test-avx512 lint types pytest pytest-alone pytest-shared format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/installed ## Serve a model on port 3000 (MODEL=…, ARGS="--port 3001 …"); default: the built-in one
	@$(BIN)/headrace serve $(MODEL) $(ARGS)

chat: $(VENV)/installed ## Chat with a model in the terminal (MODEL=…, ARGS=…)
	@$(BIN)/headrace chat $(MODEL) $(ARGS)

doctor: $(VENV)/installed ## Say what this machine is and which backends work on it
	@$(BIN)/headrace doctor

test: $(VENV)/installed-dev ## Install, then lint, types, import contract and every test
	@$(MAKE) --no-print-directory -j 4 -O lint types pytest-alone pytest-shared BESIDE='nice -n 15'

# In `make test`, how everything gives way to the tests that want the machine for themselves.
BESIDE ?=

lint: $(VENV)/installed-dev
	$(BESIDE) $(BIN)/ruff check .
	$(BESIDE) $(BIN)/ruff format --check .
	$(BESIDE) $(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BESIDE) $(BIN)/mypy
	$(BESIDE) $(BIN)/mypy --explicit-package-bases benchmarks/*.py

# These measure, restart and wait, and leave half of two cores idle: what gives way runs beside them.
ALONE := tests/benchmark tests/transport tests/end_to_end/test_clients.py \
	tests/end_to_end/test_faults.py tests/engine/test_supervisor.py

pytest: pytest-alone pytest-shared

# -v takes back the -q of pyproject: a run closes on pytest's full summary line.
pytest-alone: $(VENV)/installed-dev
	$(BIN)/python -m pytest -v --no-header $(ALONE) --durations=20 $(PYTEST_ARGS)

# The others share the cores, by file, since a file's tests share what is costly to make; in the
# order that tests/conftest.py gives.
pytest-shared: $(VENV)/installed-dev
	$(BESIDE) $(BIN)/python -m pytest -v --no-header -n auto --dist loadfile --no-loadscope-reorder \
		$(addprefix --ignore=,$(ALONE)) --durations=20 $(PYTEST_ARGS)

# Where CI or a developer has no AVX-512, its kernels are compiled but not run. Not part of `test`,
# since the emulation takes a minute or two to compile.
EMULATED := build/emulated-avx512
test-avx512: $(VENV)/installed-dev ## Test AVX-512's native kernels with the instructions emulated
	$(PIP_INSTALL) -c constraints-dev.txt cmake nanobind
	$(BIN)/cmake -S . -B $(EMULATED) -DHEADRACE_EMULATED_AVX512=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	$(BIN)/cmake --build $(EMULATED) --parallel $$(nproc)
	HEADRACE_TESTED_EXTENSION=$$(echo $(abspath $(EMULATED))/_native*.so) $(BIN)/python -m pytest \
		-v --no-header tests/kernels/native \
		--deselect tests/kernels/native/test_native_sanitized.py $(PYTEST_ARGS)

format: $(VENV)/installed-dev ## Format the sources and apply safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and every build product
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "headrace needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "creating $(VENV)"
	$(PYTHON) -m venv $(VENV)

# Prints what this package requires, with the extras that are named.
define REQUIREMENTS
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
lines, extras = list(project["dependencies"]), sys.argv[1:]
while extras:
    for line in project["optional-dependencies"][extras.pop()]:
        own = line.removeprefix(project["name"] + "[")
        if own == line:
            lines.append(line)
        else:
            extras += own.rstrip("]").split(",")
print(*dict.fromkeys(lines), sep="\n")
endef
export REQUIREMENTS

# The native kernels are compiled while the requirements are found and fetched: the one waits for
# the processor, the other for the network.
define INSTALL
$(BIN)/python -c "$$REQUIREMENTS" $(1) > $(VENV)/requirements.txt
status=0; $(PIP_INSTALL) --no-deps -e . & \
$(PIP_INSTALL) $(2) -r $(VENV)/requirements.txt || status=$$?; wait $$! && exit $$status
endef

$(VENV)/installed: $(INSTALL_INPUTS) | $(BIN)/python
	@echo "installing headrace into $(VENV) (a minute or two the first time)"
	$(call INSTALL)
	@touch $@

# pip would compile modules one after the other, and the 7,000 that nothing imports; some that come
# with packages are no valid Python.
$(VENV)/installed-dev: $(INSTALL_INPUTS) | $(BIN)/python
	@echo "installing headrace and its development tools into $(VENV) (a few minutes the first time)"
	$(call INSTALL,dev,--no-compile -c constraints-dev.txt)
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' $(VENV)/lib || true
	@touch $@ $(VENV)/installed
