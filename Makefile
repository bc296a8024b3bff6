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
lock: $(STAMP) ## Resolve requirements.lock anew from pyproject.toml, then the images' locks within its versions
	$(BIN)/pip install --quiet uv==$(UV_VERSION)
	$(COMPILE) pyproject.toml --all-extras --output-file requirements.lock
	$(COMPILE) pyproject.toml docker/requirements-cpu.in --excludes docker/excludes-cpu.txt \
		--constraints requirements.lock --output-file docker/requirements.lock
	$(COMPILE) pyproject.toml docker/requirements-gpu.in \
		--constraints requirements.lock --output-file docker/requirements-gpu.lock

# The hashes of all platforms and Pythons; no address of an index.
COMPILE := $(BIN)/uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header

##@ Cluster

DOCKER ?= docker
CLUSTER ?= kind
# 12 digits of the commit, and -dirty where a file under git differs from it.
IMAGE ?= deepfake-detector:$(shell git describe --always --abbrev=12 --exclude='*' --dirty)
# docker/requirements-gpu.lock for the GPU build.
REQUIREMENTS ?= docker/requirements.lock
OVERLAYS := local gke

.PHONY: cluster
cluster: $(STAMP) ## A local cluster (CLUSTER=kind|minikube) with the image and all that is applied once
	k8s/create-cluster $(CLUSTER) $(IMAGE)

.PHONY: images
images: ## Build docker/Dockerfile (IMAGE=name:tag REQUIREMENTS=docker/requirements-gpu.lock)
	$(DOCKER) build --file docker/Dockerfile --tag $(IMAGE) --build-arg REQUIREMENTS=$(REQUIREMENTS) \
		--build-arg COMMIT="$$(git log -1 --abbrev=10 --format=%h -- src/deepfake_detector)" .

.PHONY: golden
golden: ## Render the overlays anew into tests/manifests/golden, for review
	for overlay in $(OVERLAYS); do \
		kubectl kustomize k8s/overlays/$$overlay > tests/manifests/golden/$$overlay.yaml; done

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
