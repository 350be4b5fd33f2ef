# The commands of this repository; each one sets up what it needs. `make` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
CORES ?= 2
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.installed
CHROMIUM := /usr/bin/chromium

# Same seed, same numbers: hash order is fixed too. Thread counts are left to torch, except where
# two notebooks run side by side.
export PYTHONHASHSEED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install reproduce ablations benchmark test notebooks lint test-install test-browser test-paper lab check readme clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##[[:space:]]*/\t/' | expand -t 16

install: $(READY)  ## create .venv and install the pinned requirements

$(READY): pyproject.toml constraints.txt
	@python=; for name in "$(PYTHON)" python3.11 python3.12 python3.13 python3 python; do \
	  if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	  then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: no Python 3.11 or newer with venv found; install one (apt-get install python3.11-venv) and repeat, or name it: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV); \
	echo "make: installing the pinned requirements into $(VENV), a few minutes the first time"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[reproduce,lab,networks,geometry,speech,train,dev]"
	@$(BIN)/jupyter labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements" 2>/dev/null
	@touch $@

reproduce: $(READY)  ## redraw figures and tables of the appendix, and write figures/demo/report.html
	PATH="$(BIN):$$PATH" $(BIN)/talk3d reproduce --profile demo --cores $(CORES)

ablations: $(READY)  ## train the fifty portraits of Tables F.3 to F.5 anew, hours; figures/demo/ablations.json
	PATH="$(BIN):$$PATH" $(BIN)/talk3d reproduce --profile demo --cores $(CORES) --retrain tabF3 tabF4 tabF5

benchmark: $(READY)  ## time generator and portrait at full size; records in figures/benchmarks
	PATH="$(BIN):$$PATH" $(BIN)/talk3d benchmark figures/benchmarks/eg3d_full_cpu.json --device cpu
	PATH="$(BIN):$$PATH" $(BIN)/talk3d benchmark figures/benchmarks/portrait_full_cpu.json --part portrait --device cpu

test: lint notebooks  ## run every definition notebook and the tests (no browser, no wheel)
	$(BIN)/python -m pytest -rs -m "not browser and not install and not paper"

# Two notebooks at a time, one thread each: short cells gain little from a second thread.
notebooks: $(READY)
	OMP_NUM_THREADS=1 PATH="$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 2 --timing

lint: $(READY)
	$(BIN)/ruff format --check --quiet nbs tests
	$(BIN)/ruff check --quiet --output-format concise nbs tests talk3d
	$(BIN)/mypy --no-error-summary talk3d

test-install: $(READY)  ## build the wheel, install it into an empty environment, render one frame
	$(BIN)/python -m pytest -s -m install

test-browser: $(READY)  ## drive the tour in headless Chromium
	@if [ ! -x $(CHROMIUM) ]; then \
	  if [ "$$(id -u)" != 0 ]; then \
	    echo "make: $(CHROMIUM) is missing; install it (sudo apt-get install chromium) and repeat" >&2; exit 1; \
	  fi; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	fi
	$(BIN)/python -m pytest -rs -m browser

test-paper: $(READY)  ## run every stage of profile paper at full size, on random weights; prints seconds a stage
	$(BIN)/python -m pytest -s -m paper

lab: $(READY)  ## open JupyterLab on the tour
	PATH="$(BIN):$$PATH" $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) nbs/tour/1_portrait.ipynb

check: $(READY)  ## what to run before a commit: clean, format, lint, export, types, changed notebooks
	tools/check.sh

readme: $(READY)  ## render README.md from nbs/index.ipynb
	PATH="$(BIN):$$PATH" tools/readme.sh

clean:  ## remove the environment, the caches and the unpublished results
	rm -rf $(VENV) .snakemake .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info work figures/smoke figures/demo/notebooks
	find nbs talk3d tests -name __pycache__ -prune -exec rm -rf {} +
