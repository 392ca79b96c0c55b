# headrace: every command a developer needs. Only Python >= 3.11 and make have to be there; .venv is made from
# requirements.lock (names, versions, hashes) when it is missing or older than the lock.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Writing bytecode matters: without it every Airflow process starts 10 s later.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONHASHSEED := 0

.PHONY: help demo test check bench torture lock clean

help:
	@echo "make demo [DEMO='--speed 28800 --until-promotion --json build/demo.json']   the whole product on a year of flights"
	@echo "make test            all tests, on real servers that they start and stop"
	@echo "make check           ruff, mypy --strict, import-linter, docs"
	@echo "make bench NAME=...  a benchmark; writes build/bench/NAME.json"
	@echo "make torture [N=300 SEED=7 KINDS=a,b SABOTAGE=lost|twice|flip]   hurt it N times, then audit; writes build/torture.json"
	@echo "make lock            resolve pyproject.toml again into requirements.lock"

$(STAMP): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" bash .ci/venv "$(VENV)"
	@touch $@

demo: $(STAMP)
	@$(BIN)/headrace demo $(DEMO)

test: $(STAMP)
ifdef TEST
	@$(BIN)/python -m pytest $(TEST)
else
	@.ci/test $(BIN)
endif

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/test_docs.py

bench: $(STAMP)
	@$(BIN)/python -m tests.bench $(NAME)

# Half an hour; what each kind of fault does: tests/torture/plan.py
N ?= 300
SEED ?= 7
torture: $(STAMP)
	@PYTHONPATH=platform $(BIN)/python -m tests.torture -n $(N) --seed $(SEED) $(if $(KINDS),--kinds $(KINDS)) \
	  $(if $(SABOTAGE),--sabotage $(SABOTAGE))

lock: $(STAMP)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  --extra demo --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf build $(VENV)
