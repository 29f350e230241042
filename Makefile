# Two commands do everything on a fresh machine: make demo, make test.
# The first of these that runs, is Python 3.11 or 3.12 and can make virtual environments.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
RUN := $(BIN)/speech2image

.PHONY: help setup demo test faults check bench clean
.DEFAULT_GOAL := help

help: ## what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/installed ## virtual environment with everything installed

.venv/installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or 3.12 with venv was found; type: make setup PYTHON=/path/to/python3.12"; exit 2; }
	@echo "installing into .venv (some minutes on the first call)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup ## draw birds, speak captions, train encoder, GAN and diffusion, paint, score, report
	$(RUN) prepare data=spoken_birds
	$(RUN) train experiment=sen_birds
	$(RUN) evaluate run=sen_birds
	$(RUN) train experiment=stackgan_v2_birds
	$(RUN) generate run=stackgan_v2_birds
	$(RUN) evaluate run=stackgan_v2_birds
	$(RUN) train experiment=codec_birds
	$(RUN) evaluate run=codec_birds
	$(RUN) train experiment=s2ivq_d_birds
	$(RUN) generate run=s2ivq_d_birds
	$(RUN) evaluate run=s2ivq_d_birds
	$(RUN) report runs=[sen_birds,stackgan_v2_birds,codec_birds,s2ivq_d_birds] out=runs/demo-report

test: setup ## all tests: no network, no GPU needed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

faults: setup ## the long campaigns: kills, damage, fuzz, soak, a sweep on SLURM (half an hour)
	SPEECH2IMAGE_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 --timeout 7200 tests/faults tests/fuzz tests/ranks tests/slurm

check: setup ## style and types
	$(BIN)/ruff check --line-length 110 --ignore RUF009 src tests
	$(BIN)/ruff format --line-length 110 --check src tests
	$(BIN)/mypy

bench: setup ## speed ratios against plain forms, same run, same machine
	$(BIN)/python tests/perf/bench_stackgan_step.py
	$(BIN)/python tests/perf/bench_datamodule.py
	$(BIN)/python tests/perf/bench_recurrent.py
	$(BIN)/python tests/perf/bench_posterior.py
	$(BIN)/python tests/perf/bench_diffusion_step.py
	$(BIN)/python tests/perf/bench_sampling.py
	$(BIN)/python tests/perf/bench_scores.py
	$(BIN)/python tests/perf/bench_sweep.py

clean: ## remove what tests and builds left; runs, corpora and caches stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
