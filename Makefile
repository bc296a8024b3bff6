# `make help` lists the targets. Everything runs in .venv, installed from requirements.lock with hashes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9

##@ Start here

.PHONY: demo
demo: $(STAMP) ## Videos are synthesised, cut, trained on, exported and judged, on this machine
	$(BIN)/python -m demo $(DEMO)

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Development

.PHONY: test
test: $(STAMP) ## All tests that need no cluster (REAL_CLIPS=folder adds those on real clips)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TESTS)

.PHONY: lint
lint: $(STAMP) ## ruff, mypy, and the direction of dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: bench
bench: $(STAMP) ## Ratios of speed, memory and detection as a table and JSON lines (REAL_CLIPS=folder)
	$(BIN)/python -m bench $(BENCH)

.PHONY: lock
lock: $(STAMP) ## Resolve requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header \
		--custom-compile-command "make lock" --output-file requirements.lock --upgrade

##@ Housekeeping

.PHONY: install
install: $(STAMP) ## .venv from requirements.lock, and this checkout in it

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
		"PYTHON=$(PYTHON) is %d.%d: expected 3.11, 3.12 or 3.13 (make PYTHON=python3.12 ...)" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: clean
clean: ## Remove the demo's videos, run and model (asks nothing; .venv stays)
	rm -rf demo-videos demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
