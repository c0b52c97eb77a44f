.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BASE := $(VENV)/base
INSTALLED := $(VENV)/installed

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BASE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fewshot needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (about half a minute the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(INSTALLED): $(BASE)
	@echo "Installing what training, drawing and development need (a few minutes the first time) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(INSTALLED) ## Create .venv with the program and everything its development needs

demo: $(BASE) ## Install, enroll classes from photos, recognise others, and say what to type next
	@BIN=$(BIN) sh benchmarks/demo.sh

test: $(INSTALLED) ## Install and run every test
	@$(BIN)/pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED) ## Check style (ruff) and types (mypy)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(INSTALLED) ## Write anew what is generated: the README's module table and docs/cli.md
	@$(BIN)/python docs/generate.py

bench: $(INSTALLED) ## Measure accuracy, speed and safety, and write docs/benchmarks.md (about 20 minutes)
	@$(BIN)/python benchmarks/all.py

clean: ## Remove .venv and everything that was built
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.PHONY: help install demo test lint docs bench clean
