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
		/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Development

# Three at a time: two take a sixth longer on 2 cores, since tests wait for processes that they start. xdist
# would begin with the files of many tests, and end with one processor at the few long ones.
.PHONY: test
test: $(STAMP) ## All tests that need no cluster (REAL_CLIPS=folder adds those on real clips)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m 'not e2e' $(TESTS)

.PHONY: e2e
e2e: $(STAMP) ## The tests on the cluster of KUBECONFIG, about 20 minutes (IMAGE=name:tag as its nodes know it)
	$(call need,KUBECONFIG IMAGE)
	IMAGE='$(IMAGE)' $(BIN)/python -m pytest --capture=no --verbose --durations=15 $(or $(TESTS),tests/e2e)

.PHONY: chaos
chaos: $(STAMP) ## Faults at random against whole runs: nothing that comes out may differ (RUNS=5 SEED=a fresh one)
	$(BIN)/python -m tests.chaos --runs $(or $(RUNS),5) $(call flag,seed,SEED)

.PHONY: fuzz
fuzz: $(STAMP) ## Broken video files through the decoding processes, 2,000 in 3 minutes ([FILES=2000 SEED=])
	$(BIN)/python -m tests.fuzz --files $(or $(FILES),2000) $(call flag,seed,SEED)

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

DETECTOR := $(BIN)/deepfake-detector
OVERLAY ?= local
TARGET = --overlay '$(OVERLAY)' $(call flag,context,CONTEXT) $(call flag,namespace,NAMESPACE)
# Runs in folders of this machine need no cluster.
WHERE = $(if $(filter gs://%,$(RUN)),$(TARGET))
STAGE_FLAGS = --run '$(RUN)' --image '$(IMAGE)' $(TARGET) $(call flag,recipe,RECIPE) $(if $(SET),--set $(foreach pair,$(SET),'$(pair)')) \
	$(call flag,requests,REQUESTS) $(call flag,limits,LIMITS) $(call switch,dry-run,DRY_RUN) $(call switch,detach,DETACH)

# flag,variable: the flag with the variable's value, where it has one
flag = $(if $($(2)),--$(1) '$($(2))')
# flag,variable: the flag, where the variable is set to anything but 0
switch = $(if $(filter-out 0,$($(2))),--$(1))
# variables: stop where one of them is empty
need = $(foreach name,$(1),$(if $($(name)),,$(error $(name): empty, expected make $@ $(1:%=%=...))))

.PHONY: deploy
deploy: $(STAMP) ## What is applied once (OVERLAY=local|gke CONTEXT= NAMESPACE= here and below, DRY_RUN=1)
	@$(DETECTOR) deploy $(TARGET) $(call switch,dry-run,DRY_RUN)

.PHONY: doctor
doctor: $(STAMP) ## Is all there that submitting needs? ([RUN=gs://... WORKERS=2])
	@$(DETECTOR) doctor $(TARGET) --image '$(IMAGE)' $(call flag,run,RUN) $(call flag,workers,WORKERS)

.PHONY: upload
upload: $(STAMP) ## A local data set into the bucket, resumable (VIDEOS=folder TO=gs://...)
	$(call need,VIDEOS TO)
	@$(DETECTOR) upload --videos '$(VIDEOS)' --to '$(TO)' $(TARGET)

.PHONY: preprocess
preprocess: $(STAMP) ## Videos to records (VIDEOS=gs://... RUN=gs://... [RECIPE= PODS=4 SET="key=value ..." RETRY_LOST=1 DRY_RUN=1])
	$(call need,RUN)
	@$(DETECTOR) submit preprocess $(STAGE_FLAGS) $(call flag,videos,VIDEOS) $(call flag,pods,PODS) \
		$(call switch,retry-lost,RETRY_LOST)

.PHONY: train
train: $(STAMP) ## Records to a model (RUN=gs://... [RECORDS=gs://... WORKERS=2 SPARES=1 RECIPE= SET= DRY_RUN=1])
	$(call need,RUN)
	@$(DETECTOR) submit train $(STAGE_FLAGS) $(call flag,records,RECORDS) $(call flag,workers,WORKERS) \
		$(call flag,spares,SPARES)

.PHONY: export
export: $(STAMP) ## The export by itself; training ends with one (RUN=gs://...)
	$(call need,RUN)
	@$(DETECTOR) submit export $(STAGE_FLAGS)

.PHONY: status
status: $(STAMP) ## What a run has come to, and its pods in words (RUN=)
	$(call need,RUN)
	@$(DETECTOR) status --run '$(RUN)' $(if $(WHERE),--cluster $(WHERE))

.PHONY: logs
logs: $(STAMP) ## What the pods said, also after they are gone (RUN= [STAGE=train POD=1 FOLLOW=1])
	$(call need,RUN)
	@$(DETECTOR) logs --run '$(RUN)' $(TARGET) $(call flag,stage,STAGE) $(call flag,pod,POD) $(call switch,follow,FOLLOW)

.PHONY: stop
stop: $(STAMP) ## End a run's Jobs; what is done stays (RUN=)
	$(call need,RUN)
	@$(DETECTOR) stop --run '$(RUN)' $(TARGET)

.PHONY: pull-model
pull-model: $(STAMP) ## Fetch a run's model, checksums verified (RUN= [TO=model])
	$(call need,RUN)
	@$(DETECTOR) pull --run '$(RUN)' --to '$(or $(TO),model)' $(WHERE)

.PHONY: tensorboard
tensorboard: $(STAMP) ## A run's curves in the browser (RUN= [PORT=6006])
	$(call need,RUN)
	@$(DETECTOR) tensorboard --run '$(RUN)' $(TARGET) $(call flag,port,PORT)

.PHONY: clean
clean: $(STAMP) ## Remove a run's objects from the cluster; DATA=1: its data, too, after asking (RUN= [DATA=1 YES=1])
	$(call need,RUN)
	@$(DETECTOR) clean --run '$(RUN)' $(TARGET) $(call switch,data,DATA) $(call switch,yes,YES)

.PHONY: golden
golden: ## Render overlays and components anew into tests/manifests/golden, for review
	for overlay in $(OVERLAYS); do \
		kubectl kustomize k8s/overlays/$$overlay > tests/manifests/golden/$$overlay.yaml; done
	kubectl kustomize tests/manifests/bucket-key > tests/manifests/golden/bucket-key.yaml

##@ Housekeeping

.PHONY: install
install: $(STAMP) ## .venv from requirements.lock, and this checkout in it

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
		"PYTHON=$(PYTHON) is %d.%d: expected 3.11, 3.12 or 3.13 (make PYTHON=python3.12 ...)" % v)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages into $(VENV), 3.1 GB: some minutes"
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: clean-local
clean-local: ## Remove the demo's videos, run and model (asks nothing; .venv stays)
	rm -rf demo-videos demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
