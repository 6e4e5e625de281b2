# Everything sets up what it needs: Python 3.11 or newer with pip, and the network for the first install, are all that is assumed.
#
#   make demo      draw the paper's Figure 4, train a vanilla decoder and two with latents, compare them, write the report page
#   make reproduce the Free Transformer's synthetic experiment from the shipped weights: figure, table, outcomes
#   make test      the test suite            make lint    ruff and mypy
#   make conformance  the long half of the tests (an hour on two cores): every decoder compiled and killed, more combinations;
#                     several processes killed; every command of docs/; a plugin begun in ten minutes; every option of the
#                     lm-eval adapter run; the slowest benchmarks in their short form
#   make hostile   thousands of bad inputs, each in a process of its own: one message, nothing lost (an hour on two cores)
#   make numbers   the likelihoods of the docs measured again where weights changed, and their tables (hours on two cores; it can be
#                  stopped). NUMBERS_OPTIONS="--device cuda --jobs 8" where there is a GPU, --jobs 16 where there are cores
#   make bench     the benchmarks            make install the environment in .venv, with what developers need
#
# PYTHON=python3.12 picks another interpreter; PIP_OPTIONS="..." is passed to every `pip install`
# (a CPU-only build of torch saves a large download where there is no GPU: name its index there).

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP_OPTIONS ?=
PYTEST_OPTIONS ?=
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt $(PIP_OPTIONS)
PACKAGING := pyproject.toml constraints.txt evals/latentlm_lm_eval.pth

.PHONY: help demo reproduce test conformance hostile lint bench numbers install clean

help:
	@sed -n 's/^#   //p' Makefile

# One stamp per step, so that a repeat costs nothing and a change of one step repeats only what follows it.
$(VENV)/.stamp-python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or say PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making the environment $(VENV) with $(PYTHON)"
	@# Some systems ship Python without ensurepip: then their own pip fills the environment.
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { $(PYTHON) -m venv --without-pip --clear $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@

$(VENV)/.stamp-torch: $(VENV)/.stamp-python constraints.txt
	@echo "Installing torch (the largest download)"
	@$(PIP) torch
	@touch $@

$(VENV)/.stamp-install: $(VENV)/.stamp-torch $(PACKAGING)
	@echo "Installing latentlm and what it needs"
	@$(PIP) -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-install
	@echo "Installing what the tests and linters need"
	@$(PIP) -e '.[dev]'
	@touch $@

install: $(VENV)/.stamp-dev
	@echo "Ready: . $(BIN)/activate, then latentlm --help"

FIGURE4 := runs/synthetic/figure4-full.png
FIGURE4_SAYS := "Figure 4 of the Free Transformer, from the shipped models of the synthetic task: each row of panels is a budget of \
bits a token. In a panel, texts of one block under \"one z for all five\" share a single z, those under \"z drawn for each\" do \
not; on the left the prompt's z is drawn from the prior, as in the paper, on the right the encoder fills it in. What texts of a \
block share is what z carries: first the place of the letters (blue), with more bits the noise (orange) too."
demo: $(VENV)/.stamp-install
	$(BIN)/latentlm reproduce synthetic --only "free-synthetic-full-*" --out runs/synthetic
	$(BIN)/latentlm compare demo-vanilla demo-free demo-causal --jobs 3 --documents 16 --document-bytes 256 --max-samples 256 \
		--picture $(FIGURE4) --caption $(FIGURE4_SAYS) --out runs/demo

reproduce: $(VENV)/.stamp-install
	$(BIN)/latentlm reproduce synthetic

# What only the benchmarks compare with stays outside the environment. BENCH_OPTIONS: --quick, --large, --json FILE.
$(VENV)/.stamp-peers: $(VENV)/.stamp-dev
	@echo "Installing what the benchmarks compare with"
	@$(PIP) --upgrade --no-deps --target $(VENV)/peers x-transformers==2.31.10 einx==0.4.3 frozendict==2.5.1 loguru==0.7.3 \
		torch-einops-utils==0.2.0
	@touch $@

bench: $(VENV)/.stamp-peers
	PYTHONPATH=$(VENV)/peers $(BIN)/python -m benchmarks $(BENCH_OPTIONS)

test: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(PYTEST_OPTIONS)

conformance: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m conformance tests $(PYTEST_OPTIONS)

hostile: $(VENV)/.stamp-dev
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m hostile $(HOSTILE_OPTIONS)

numbers: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python docs/build_numbers.py --measure $(NUMBERS_OPTIONS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
