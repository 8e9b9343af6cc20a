# `make help` lists the commands. Each installs what it needs first; the stamp makes that free the second time.
SHELL := /bin/sh
PYTHON := .venv/bin/python
STAMP := .venv/.installed
# The state of the local stack (data, logs, keys); another folder and PORT give a second stack beside the first.
export DATA_DIR ?= .data

.DEFAULT_GOAL := help
.PHONY: help install demo test properties up down status setup-bigquery bench soak pictures judge chaos lint scan proto clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml .python-version deploy/local/install.sh
	@sh deploy/local/install.sh

demo: $(STAMP) ## all flows on sample data in a stack of its own, ends with equal totals
	@$(PYTHON) -m deploy.local.demo

test: $(STAMP) ## all tests: two files at a time, each process with an emulator and a stack of its own; end to end last
	@$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		tests/contract tests/unit tests/integration tests/e2e $(PYTEST_ARGS)

properties: $(STAMP) ## the properties and state machines with ten times as many examples, new ones every time
	@HYPOTHESIS_PROFILE=long $(PYTHON) -m pytest -n 2 --dist loadfile --timeout 3600 $$(grep -rl 'import examples' tests/unit) $(PYTEST_ARGS)

up: $(STAMP) ## start the local stack (PORT=8080, DATA_DIR=.data) and return when it is healthy
	@$(PYTHON) -m deploy.local.stack up

down: ## stop exactly what `make up` started
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m deploy.local.stack down; fi

status: $(STAMP) ## what runs, where, and since when
	@$(PYTHON) -m deploy.local.stack status

setup-bigquery: $(STAMP) ## create or extend the central dataset (running local stack, or the project of the environment)
	@$(PYTHON) -m deploy.local.stack exec -- $(PYTHON) -m deploy.setup_bigquery_datasets

bench: $(STAMP) ## figures beside a peer or a limit, as tables and build/bench.json (BENCH=edge,run,quotas,schedules,compliance,tracing,data picks)
	@$(PYTHON) -m tests.bench

soak: $(STAMP) ## ten minutes of steady reads: no error, flat memory (SOAK_SECONDS=600, SOAK_RATE=60)
	@$(PYTHON) -m tests.bench.soak

pictures: $(STAMP) ## the README's pictures of the two pages anew, in docs/pictures
	@PICTURES=1 $(PYTHON) -m pytest -q tests/integration/test_pages.py

judge: $(STAMP) ## outside judges: focus-validator on FOCUS columns, the OCSF schema on findings (JUDGE=focus,ocsf picks)
	@$(PYTHON) -m tests.judge

chaos: $(STAMP) ## two replicas each, load, rolling restarts, overload, faults; then every invariant (CHAOS_SECONDS=900 CHAOS_SEED=)
	@$(PYTHON) -m tests.chaos

lint: $(STAMP) ## formatting, types, import rules, contracts
	@sh deploy/local/lint.sh

scan: $(STAMP) ## known flaws of the locked packages, secrets in the files, a bill of materials in build/
	@sh deploy/local/scan.sh

proto: $(STAMP) ## regenerate protos/gen and the OpenAPI document from the .proto files
	@$(PYTHON) protos/generate.py
	@$(PYTHON) -m deploy.envoy.openapi

clean: down ## stop the stack; remove .venv, build/, caches and the stack's data
	@rm -rf .venv .uv build dist $(DATA_DIR) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
