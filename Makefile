# Esteira: everything a person types. `make help` is made from the comments behind the targets.
#
#   make setup PYTHON=python3.12   takes that interpreter; without PYTHON the first of python3, 3.13, 3.12, 3.11 that fits
#   make bench ROUNDS=3            more rounds
#   make bench-automl BUDGET=300   more seconds for each search
#   make images ENGINE=buildah     with buildah instead of docker; BASE=image stands it on another base, PREFIX=host/folder names it
#
# Packages come from the index that pip is configured for; the lock pins their hashes and names no index.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.lock
STAMP := $(VENV)/esteira-setup
ROUNDS ?= 2
BUDGET ?= 60
# Threads of libgomp that spin while they wait slow small fits a hundred times, at random, on shared cores.
export OMP_WAIT_POLICY ?= passive
ifneq ($(filter command% environment%,$(origin PYTHON)),)
ASKED := $(PYTHON)
endif

.PHONY: help setup data repro demo test test-all check format bench bench-orchestrators bench-automl bench-serving portfolio demo-release family compile golden images test-containers requirements docs clean lock

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Create .venv from the lock and install esteira into it; under 2 s when nothing changed
	@key="$$({ echo "$(CURDIR)"; cat $(LOCK) pyproject.toml requirements/setup.sh requirements/index.sh; } | cksum) $(ASKED)"; \
	if [ -x $(BIN)/esteira ] && [ -f $(STAMP) ] && { [ "$$key" = "$$(cat $(STAMP))" ] || \
	   { [ -z "$(ASKED)" ] && [ "$${key% *}" = "$$(sed 's/ [^ ]*$$//' $(STAMP))" ]; }; }; \
	then echo "setup: .venv is up to date"; \
	else bash requirements/setup.sh "$(ASKED)" && printf '%s\n' "$$key" > $(STAMP); fi

data: setup  ## data/: pulled where DVC has a remote (ESTEIRA_DVC_REMOTE), else written; the same bytes on every machine
	@$(BIN)/esteira data --pull

repro: data  ## Reproduce every family's steps with DVC; an unchanged dvc.lock means: the same bytes as when it was committed
	@$(BIN)/dvc repro

demo: setup  ## From nothing to an HTTP answer: data, the whole DAG, a served model, one question
	@$(BIN)/esteira data
	@$(BIN)/esteira run tabular
	@$(BIN)/esteira demo

demo-release: setup  ## Releases on a synthetic clock: a good, a bad and an unseen candidate; ledger at, rollback, verify
	@$(BIN)/esteira demo-release

# A file's tests share what they set up, so a file is one process's. Slow tests compare times and sizes: one after the other.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

test: setup  ## Run the quick tests
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: test  ## Run every test, slow ones too
	@$(BIN)/python -m pytest -m slow

check: setup  ## Everything CI does: format, lint, types, import contracts, the quick tests
	@began=$$SECONDS; \
	step() { echo "== $$1"; shift; from=$$SECONDS; "$$@" || { echo "check: FAILED at '$$*' after $$((SECONDS - began)) s"; exit 1; }; \
	         echo "   $$((SECONDS - from)) s"; }; \
	step "format" $(BIN)/ruff format --check .; \
	step "lint" $(BIN)/ruff check .; \
	step "types" $(BIN)/mypy; \
	step "import contracts" $(BIN)/lint-imports; \
	step "tests" $(MAKE) test; \
	echo "check: all passed in $$((SECONDS - began)) s"

format: setup  ## Format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup  ## Time the DAG against a plain script, side by side (benchmarks/dag)
	@$(BIN)/python -m benchmarks.dag.compare --rounds $(ROUNDS)

bench-orchestrators: setup  ## Time six no-op steps by our runner and by kfp, DVC, Kedro, Metaflow, Prefect (benchmarks/orchestrators)
	@$(BIN)/python -m benchmarks.orchestrators.compare --rounds $(if $(filter file,$(origin ROUNDS)),10,$(ROUNDS))

bench-automl: setup  ## Ours, FLAML, AutoGluon and LightGBM on public tables, BUDGET=60 s each; hours; goes on where it was stopped
	@$(BIN)/python -m benchmarks.automl.compare --budget $(BUDGET) --write docs/benchmarks.md

bench-serving: setup  ## One model behind our service, FastAPI, MLflow and MLServer, asked by wrk by turns (benchmarks/serving)
	@$(BIN)/python -m benchmarks.serving.compare --rounds $(if $(filter file,$(origin ROUNDS)),3,$(ROUNDS))

portfolio: setup  ## Learn anew which configurations a search tries first (benchmarks/automl); hours; goes on where it was stopped
	@$(BIN)/python -m benchmarks.automl.portfolio

family: setup  ## Write a new family, green from the first minute: make family NAME=x
	@$(BIN)/python -m pipelines.scaffold "$(NAME)"
	@$(BIN)/python -m "families.$(NAME).sample"
	@echo "families/$(NAME)/sample"

compile: setup  ## Compile the pipeline of every line to KFP's IR YAML
	@$(BIN)/esteira compile

golden: setup  ## Write tests/golden/ anew after an intended change of the compiled pipeline; then read the diff
	@$(BIN)/python -m tests.golden

images:  ## Build the container images: make images TARGETS=serving PREFIX=host/folder BASE=image ENGINE=buildah
	@bash requirements/images.sh $(or $(TARGETS),pipeline pipeline-torch serving serving-gpu)

test-containers: setup  ## Build the images and run the steps and the service in them; starts an engine where none runs (root)
	@$(BIN)/python -m pytest -m containers tests/containers

requirements: setup  ## Run the tests that prove requirements; print how many are proven; write docs/requirements/status.md
	@$(BIN)/python -m tests.requirements

docs: setup  ## Draw docs/flow.svg from the DAG's shape
	@$(BIN)/python docs/flow.py

clean:  ## Remove what can be made again (.venv, build/, caches); data/ and $ESTEIRA_HOME stay
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: setup  ## Lock what pyproject.toml asks for, by hash, without index addresses; LOCK_FLAGS=--upgrade takes the newest
	@for part in "dev --extra pipeline --extra serving --group dev" "pipeline --extra pipeline -c $(LOCK)" \
	   "serving --extra serving -c $(LOCK)" "serving-gpu --extra serving --extra gpu --no-emit-package onnxruntime -c $(LOCK)"; do \
	  set -- $$part; name=$$1; shift; \
	  env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	    --custom-compile-command "make lock" $(LOCK_FLAGS) pyproject.toml "$$@" -o requirements/$$name.lock; \
	done
	@# Torch without CUDA, for Linux: from a wheel beside us (UV_FIND_LINKS) or from the index that uv knows for it.
	@UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}"; [ -n "$$UV_FIND_LINKS" ] && export UV_FIND_LINKS || unset UV_FIND_LINKS; \
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['torch'])" \
	| $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform linux --no-annotate --custom-compile-command "make lock" \
	    $$([ -n "$${UV_FIND_LINKS:-}" ] || echo --torch-backend=cpu) $(LOCK_FLAGS) -c $(LOCK) - | sed 's/+cpu$$//' > requirements/torch.tmp
	@mv requirements/torch.tmp requirements/torch.lock
