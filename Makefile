# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN := $(BIN)/speech2image

.PHONY: help setup demo test check bench clean
.DEFAULT_GOAL := help

help: ## what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/installed ## virtual environment with everything installed

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v=sys.version_info[:2]; sys.exit(0 if v in ((3,11),(3,12)) else f"Python 3.11 or 3.12 is needed, found {v[0]}.{v[1]}: make setup PYTHON=/path/to/python3.12")'
	@echo "installing into .venv (some minutes on the first call)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup ## draw birds, speak captions, train encoder and GAN, paint, score, report
	$(RUN) prepare data=spoken_birds
	$(RUN) train experiment=sen_birds
	$(RUN) evaluate run=sen_birds
	$(RUN) train experiment=stackgan_v2_birds
	$(RUN) generate run=stackgan_v2_birds
	$(RUN) evaluate run=stackgan_v2_birds
	$(RUN) report runs=[sen_birds,stackgan_v2_birds] out=runs/demo-report

test: setup ## all tests: no network, no GPU needed
	$(BIN)/python -m pytest -n 2 --dist loadscope

check: setup ## style and types
	$(BIN)/ruff check --line-length 110 --ignore RUF009 src tests
	$(BIN)/ruff format --line-length 110 --check src tests
	$(BIN)/mypy

bench: setup ## speed ratios against plain forms, same run, same machine
	$(BIN)/python tests/perf/bench_stackgan_step.py
	$(BIN)/python tests/perf/bench_datamodule.py

clean: ## remove what tests and builds left; runs, corpora and caches stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
