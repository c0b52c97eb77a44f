.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
MADE := $(VENV)/made
BASE := $(VENV)/base
INSTALLED := $(VENV)/installed

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PIP := $(BIN)/pip --disable-pip-version-check --quiet
# pip makes byte code with one core: here all cores do, and tests that come with a library have none made.
INSTALL = $(PIP) install --no-compile --editable '$(1)' && \
	  { $(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true; }  # templates are no Python

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fewshot needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(BASE): pyproject.toml | $(MADE)
	@echo "Installing into $(VENV) (about a minute the first time) ..."
	@$(call INSTALL,.)
	@touch $@

# What is installed here holds the base: nobody has to install that before.
$(INSTALLED): pyproject.toml | $(MADE)
	@echo "Installing the program and what its development needs into $(VENV) (a few minutes the first time) ..."
	@$(call INSTALL,.[dev])
	@touch $(BASE) $@

install: $(INSTALLED) ## Create .venv with the program and everything its development needs

demo: $(BASE) ## Install, enroll classes from photos, recognise others, and say what to type next
	@BIN=$(BIN) sh benchmarks/demo.sh

test: $(INSTALLED) ## Install and run every test
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED) ## Check style (ruff) and types (mypy)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(INSTALLED) ## Write anew what is generated: the README's module table and docs/cli.md
	@$(BIN)/python docs/generate.py

bench: $(INSTALLED) ## Measure accuracy, speed and safety, and write docs/benchmarks.md (some hours)
	@$(BIN)/python benchmarks/all.py

soak: $(INSTALLED) ## Hold an index against a plain dictionary for OPERATIONS operations (100000); goes on where it stopped
	@$(BIN)/python benchmarks/soak.py --operations $(or $(OPERATIONS),100000)

faults: $(INSTALLED) ## Kill, fill, cut and damage: every fault of docs/reliability.md; goes on where it stopped
	@$(BIN)/python benchmarks/campaign_faults.py && $(BIN)/python benchmarks/campaign_damage.py

audit: $(INSTALLED) ## Ask the advisory database about every installed package (needs its network)
	@$(PIP) install pip-audit && $(BIN)/pip-audit --local --skip-editable

clean: ## Remove .venv and everything that was built
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.PHONY: help install demo test lint docs bench soak faults audit clean
