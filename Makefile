# make run         from random weights to a trained, evaluated agent and its report
# make test        all tests but the slow ones
# make check       lint and types
# make test-slow   the slow tests
# make check-transformers   exported policies in transformers 4.51 and the newest
# make install     the environment only
# make lock        newer releases for all of these, see requirements.lock
#
# Variables: PYTHON (3.11 or newer), ACCELERATOR (cpu, cuda or tpu; found out by itself),
# CONFIG, WORKDIR, ARGS (more flags of vrag_jax.main, e.g. ARGS='--config.seed=1'), JOBS (how
# many processes run the tests), LATEST (1: the newest releases instead of those of
# requirements.lock, in an environment of their own, .venv-latest).

PYTHON ?= python3
ACCELERATOR ?= $(shell sh launch/accelerator.sh)
CONFIG ?= configs/tiny.py
WORKDIR ?= runs/tiny
ARGS ?=
JOBS ?= 2
LATEST ?=

VENV := .venv$(if $(filter-out 0,$(LATEST)),-latest)
BIN := $(VENV)/bin
DECLARED := pyproject.toml requirements.txt requirements-cuda.txt requirements-tpu.txt \
  requirements-build.txt requirements.lock
# One stamp an accelerator: set-up is done once, and again when what is declared changes.
STAMP := $(VENV)/.installed-$(ACCELERATOR)
EXTRAS := dev,ocr,quantization,serve,tpu-aot

PIP := $(BIN)/python -m pip install -qq
ifeq ($(filter-out 0,$(LATEST)),)
PIP_LOCKED := $(PIP) --constraint requirements.lock
# Some are built here, with the setuptools that the lock names.
PIP_BUILDS := $(PIP_LOCKED) --build-constraint requirements.lock
else
PIP_LOCKED := $(PIP) --upgrade --upgrade-strategy eager
PIP_BUILDS := $(PIP_LOCKED)
endif

.PHONY: run test check test-slow check-transformers install lock
.DELETE_ON_ERROR:

run: $(STAMP)
	$(BIN)/python -m vrag_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(STAMP)-dev
	$(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist=worksteal $(ARGS)

check: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(STAMP)-dev
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist=worksteal $(ARGS)

check-transformers: $(STAMP)-dev
	$(BIN)/python -m tests.tasks.check_transformers $(ARGS)

install: $(STAMP)

# One file for all platforms, accelerators and Pythons from 3.11 on; uv, which makes it, is in an
# environment of its own.
lock: | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --upgrade uv
	$(VENV)/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --all-extras --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --output-file requirements.lock \
	  pyproject.toml requirements-build.txt

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' here. Install Python 3.11 or newer, or say where it is:"; \
	  echo "  make run PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vrag_jax needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)."; \
	  echo "Say which one to use:  make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(DECLARED) | $(BIN)/python
	$(PIP_LOCKED) -r requirements-build.txt
	$(PIP_BUILDS) -r requirements$(patsubst %,-%,$(filter-out cpu,$(ACCELERATOR))).txt
	$(PIP_BUILDS) -e .
	@touch $@

$(STAMP)-dev: $(STAMP)
	$(PIP_BUILDS) -e '.[$(EXTRAS)]'
	@touch $@
