# make run         from random weights to a trained, evaluated agent and its report
# make test        lint, types and all tests but the slow ones
# make test-slow   the slow tests
# make check-transformers  an exported policy in transformers 4.51 and the newest
# make install     the environment only
#
# Variables: PYTHON (3.11 or newer), ACCELERATOR (cpu, cuda or tpu; found out by itself),
# CONFIG, WORKDIR, ARGS (more flags of vrag_jax.main, e.g. ARGS='--config.seed=1'), JOBS (how
# many processes run the tests).

PYTHON ?= python3
ACCELERATOR ?= $(shell sh launch/accelerator.sh)
CONFIG ?= configs/tiny.py
WORKDIR ?= runs/tiny
ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
DECLARED := pyproject.toml requirements.txt requirements-cuda.txt requirements-tpu.txt
# One stamp an accelerator: set-up is done once, and again when what is declared changes.
STAMP := $(VENV)/.installed-$(ACCELERATOR)

# On a CPU a step's buffers are memory of this process, given back and asked for anew again and
# again, which costs up to half of the time. Kept, and in huge pages, they cost nothing; glibc
# reads this before Python starts.
ifeq ($(ACCELERATOR),cpu)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864
endif

.PHONY: run test test-slow check-transformers install
.DELETE_ON_ERROR:

run: $(STAMP)
	$(BIN)/python -m vrag_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'alone and not slow' $(ARGS) || [ $$? -eq 5 ]  # 5: none chosen.
	$(BIN)/python -m pytest -m 'not alone and not slow' -n $(JOBS) --dist=worksteal $(ARGS)

test-slow: $(STAMP)-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

check-transformers: $(STAMP)-dev
	$(BIN)/python -m tests.tasks.check_transformers $(ARGS)

install: $(STAMP)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' here. Install Python 3.11 or newer, or say where it is:"; \
	  echo "  make run PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vrag_jax needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)."; \
	  echo "Say which one to use:  make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(DECLARED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements$(patsubst %,-%,$(filter-out cpu,$(ACCELERATOR))).txt
	$(BIN)/python -m pip install -qq -e .
	@touch $@

$(STAMP)-dev: $(STAMP)
	$(BIN)/python -m pip install -qq -e '.[dev,ocr,quantization,serve,tpu-aot]'
	@touch $@
