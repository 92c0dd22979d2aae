# `make quickstart` and `make test` install everything they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m rlhf_lightning
TEST := $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: install quickstart prove drills test test-slow test-examples test-smoke test-long bench check format clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

install: $(VENV)/.installed  ## create .venv with the pinned dependencies

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: install  ## train the whole pipeline on the assistant task and write a report
	$(RUN) pipeline --config configs/quickstart.yaml --name quickstart
	$(RUN) report runs/quickstart

prove: install  ## expected gradients against exact ones; the same run on two ranks, in microbatches, after a death
	@$(RUN) prove --runs

drills: install  ## kill runs and pipelines at random moments, bring about faults, refuse bad configurations
	$(BIN)/python benchmarks/drills.py --kills 30 --two_ranks 8 --pipelines 6 --seed 1
	$(BIN)/python benchmarks/bad_configs.py

test: install  ## all tests but those below
	$(TEST)

test-slow: install  ## whole runs through the command line: killed, on several ranks, compared, swept
	$(TEST) -m slow

test-examples: install  ## every example that a help text, a configuration or the README shows
	$(TEST) --dist loadfile -m examples

test-smoke: install  ## every comparison and sweep that ships, at its smallest budget
	$(BIN)/python -m pytest -m smoke

test-long: install  ## known results of control over five seeds
	$(BIN)/python -m pytest -s -m long

bench: install  ## beside TRL and Stable-Baselines3, which are installed into .venv-peers (a quarter of an hour)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . \
	  -r benchmarks/peers/requirements.txt
	PYTHONPATH=benchmarks .venv-peers/bin/python -m peers

check: install  ## formatting, lint, types, import directions, shipped configurations
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_configs.py

format: install  ## format and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## remove .venv and caches, keep runs
	rm -rf $(VENV) .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
