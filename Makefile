# Every target sets itself up on a fresh machine: Python 3.11 or newer, uv if it is there, else venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench soak clean

demo: $(VENV)/.core
	$(BIN)/headrace demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not soak" -n 2

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/python -m pytest -q -m "not soak and not service and not slow"

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py $(if $(FULL),--full)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak --timeout 3600
	HEADRACE_FUZZ_EXAMPLES=5000 $(BIN)/python -m pytest tests/collect/test_fuzz.py --timeout 3600
	$(BIN)/headrace verify --worlds 200

$(VENV)/.core: pyproject.toml
	PYTHON="$(PYTHON)" sh scripts/install $(VENV)
	touch $@

$(VENV)/.dev: pyproject.toml
	PYTHON="$(PYTHON)" sh scripts/install $(VENV) dev
	touch $@ $(VENV)/.core

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	PYTHON="$(PYTHON)" sh scripts/install $(VENV) bench
	touch $@

clean:
	rm -rf $(VENV) dist
