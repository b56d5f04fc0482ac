# Everything a person runs. Each target installs what it needs into .venv first, and only when something changed.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRAS)
THREADS ?= 2
# Processes that the tests share. Those of Ray, S3 and kills wait more than they work: two a core are not too many.
WORKERS ?= 4
# One thread each: what is computed is small, and more threads than cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
BENCHMARKS := bench-label bench-loss bench-scale bench-sweep bench-targets
STREAMING := .venv-streaming
.PHONY: help install chromium demo test test-fast test-nodes test-s3 test-trackers lint format bench bench-read $(BENCHMARKS) clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## Decant with the extras of EXTRAS (default dev) in VENV

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Decant needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V): make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@# On all cores; pip compiles on one. Some packages carry files of other Pythons, which do not compile.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

demo:  ## the main job on the Python sources of this machine, with a report (6 minutes)
	@$(MAKE) --no-print-directory install EXTRAS=demo
	$(BIN)/decant demo

chromium:  ## the browser that some tests open pages in, where apt-get can install it (else they are skipped)
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends chromium >/dev/null || \
		echo "no Chromium, and apt-get cannot install it here: tests that open pages are skipped" >&2

# The linters run beside the tests, and their output comes after. (A line that has $(MAKE) itself runs in spite of -n.)
LINT := $(MAKE) --no-print-directory lint

test:  ## linters, type checks and tests, but for those of test-s3 and test-nodes
	@$(MAKE) --no-print-directory --jobs 2 install chromium
	@$(LINT) >$(VENV)/lint.log 2>&1 & linting=$$!; \
	$(PYTEST) --durations=10; tested=$$?; \
	wait $$linting; linted=$$?; cat $(VENV)/lint.log; exit $$((tested + linted))

test-fast: install  ## the default tier only
	$(PYTEST) -m "not slow"

test-s3: install  ## the store, a job and its faults on Ceph's S3 server (started here, from Debian's packages)
	tests/s3/ceph.sh install
	$(BIN)/python -m pytest -q --ceph -m ceph --durations=5

test-nodes: install  ## the script for clusters: two Ray nodes in a network of their own (root; minutes of waiting)
	$(BIN)/python -m pytest -q --nodes -m nodes --durations=5

test-trackers: install  ## what MLflow and W&B are told, by their own libraries (installed here)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mlflow,wandb]'
	$(BIN)/python -m pytest -q tests/student/test_trackers.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: install  ## put the sources into the house's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-read $(BENCHMARKS)  ## all of them; their figures into benchmarks/results

# The others' readers come into environments of this one's making; MosaicML Streaming needs an older NumPy.
bench-read: install $(STREAMING)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	tests/s3/ceph.sh install
	$(BIN)/python -m benchmarks.read --streaming-python $(STREAMING)/bin/python
	$(BIN)/python -m benchmarks.read --streaming-python $(STREAMING)/bin/python --s3 --contents sequences

$(STREAMING)/.installed:
	$(PYTHON) -m venv $(STREAMING)
	$(STREAMING)/bin/pip install --quiet --disable-pip-version-check 'mosaicml-streaming>=0.13,<1' torch torchvision
	@touch $@

$(BENCHMARKS): bench-%: install
	$(BIN)/python -m benchmarks.$* --threads $(THREADS)

clean:  ## remove what the targets above made
	rm -rf $(VENV) $(STREAMING) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
