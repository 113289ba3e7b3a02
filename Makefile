# Every verb of this project; `make` alone lists them. Paths are relative, so that the checkout may lie anywhere.

# The first Python that is new enough. Another one: `make install PYTHON=/path/to/python3.13`.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --disable-pip-version-check --no-deps --require-hashes -r
LOCK := $(RUN) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-config --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test test-faults test-mutations check lint types contracts format lock key migrate api worker bench-relay bench-queue bench-batch clean

help: ## List every verb.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

install: $(VENV)/development ## Install everything, locked by hash, in .venv (PYTHON=… chooses the interpreter).

run: $(VENV)/runtime ## Run it all on private servers: PostgreSQL, Redis, the API and a worker. Ctrl-C stops them.
	@exec $(RUN) -m shared.embedded

test: $(VENV)/development ## Run the tests, two at a time, on real servers of their own (ARGS=… goes to pytest).
	$(RUN) -m pytest --numprocesses 2 --dist worksteal $(ARGS)

test-faults: $(VENV)/development ## Run the tests of what breaks, those that take minutes, too.
	$(RUN) -m pytest tests/faults --long $(ARGS)

test-mutations: $(VENV)/development ## Break the code in known ways; each must turn its test red (ARGS=word chooses).
	$(RUN) -m tests.mutations $(ARGS)

check: lint types contracts test ## Run everything that a change must pass.

lint: $(VENV)/development ## Look for lint and for unformatted files.
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

types: $(VENV)/development ## Check the types, strictly.
	$(RUN) -m basedpyright

contracts: $(VENV)/development ## Check which package may import which.
	$(RUN) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

format: $(VENV)/development ## Format the code and fix what can be fixed.
	$(RUN) -m ruff check --fix-only . && $(RUN) -m ruff format .

lock: $(VENV)/development ## Write the locks anew from pyproject.toml (UPGRADE=1 takes the newest versions).
	$(LOCK) pyproject.toml --all-extras --group dev --output-file requirements/development.txt
	$(LOCK) pyproject.toml --extra embedded --group client --constraints requirements/development.txt --output-file requirements/embedded.txt
	$(LOCK) pyproject.toml --constraints requirements/development.txt --output-file requirements/production.txt
	$(LOCK) --group client --constraints requirements/development.txt --output-file requirements/client.txt

key: ## Make an API key for a tenant (TENANT=name); needs nothing but a Python.
	@"$(or $(PYTHON),$(wildcard $(RUN)),$(error agent-relay needs Python 3.11 or newer: make key PYTHON=/path/to/python3.13))" -m shared.keys $(if $(TENANT),"$(TENANT)",$(error Say whose key it is: make key TENANT=name))

migrate: $(VENV)/runtime ## Bring the tables of DATABASE_URL up to date.
	$(RUN) -m shared.migrations

api: $(VENV)/runtime ## Run an API process on the servers that DATABASE_URL and REDIS_URL name.
	@exec $(RUN) -m api

worker: $(VENV)/runtime ## Run a worker process on the servers that DATABASE_URL and REDIS_URL name.
	@exec $(RUN) -m worker

bench-relay: $(VENV)/development ## Measure the relay and the worker against what everybody knows (ARGS="--rounds 5").
	$(RUN) -m benchmarks $(ARGS)

bench-queue: $(VENV)/development ## Measure the queue against arq and against bare PostgreSQL (ARGS="--rounds 5").
	$(RUN) -m benchmarks.queue $(ARGS)

bench-batch: $(VENV)/development ## Measure batches against single runs and bare servers, and what they cost others (ARGS="--rounds 5").
	$(RUN) -m benchmarks.batch $(ARGS)

clean: ## Remove what was installed and cached; the data of `make run` in .local stay.
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say which lock was installed. What development installs contains what running needs.
$(VENV)/development: requirements/development.txt | $(RUN)
	$(INSTALL) $<
	@touch $(VENV)/runtime $@

$(VENV)/runtime: requirements/embedded.txt | $(RUN)
	$(INSTALL) $<
	@touch $@

$(RUN):
	@test -n "$(PYTHON)" || { echo "agent-relay needs Python 3.11 or newer; found $$(python3 --version 2>&1)." \
		"Name one: make install PYTHON=/path/to/python3.13"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "agent-relay needs Python 3.11 or newer, which $(PYTHON) is not."; exit 1; }
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
