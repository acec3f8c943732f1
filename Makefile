# Everything starts here; `make` alone explains itself.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/uv/bin/uv
UV_VERSION := 0.13.9

RATE ?= 2500
SECONDS_ := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),60)
TAGS ?= 200
KEEP ?=
SEED ?=
MINUTES ?= 20

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: env
env: $(VENV)/.ready  ## Make the Python environment in .venv, exactly as locked

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make env PYTHON=/path/to/python3.11"; exit 4; }
	@# uv lives in an environment of its own: a sync to the lock file would remove it from ours.
	@test -x $(UV) || $(PYTHON) -m venv $(VENV)/uv || { echo "run: apt-get install -y python3-venv"; exit 4; }
	@test -x $(UV) || $(VENV)/uv/bin/pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@test -x $(BIN)/python || $(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV)
	VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet --require-hashes requirements.lock
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: servers
servers: env  ## Install the system programs that the local stack needs (root), or say which
	@$(BIN)/rayapp stack install

.PHONY: sim
sim: servers  ## Build the gateway simulator
	@$(MAKE) --no-print-directory -C firmware/sim all

.PHONY: demo
demo: sim  ## From nothing to a table of what happened: 60 s of traffic through everything (KEEP=1 leaves it running)
	@$(BIN)/rayapp demo --seconds $(SECONDS_) --tags $(TAGS) $(if $(KEEP),--keep)

.PHONY: bench
bench: sim  ## Measure: RATE messages/s for SECONDS, latency, loss, cost of every process
	@$(BIN)/rayapp bench --rate $(RATE) --seconds $(SECONDS_) --tags $(TAGS)

.PHONY: bench-ledger
bench-ledger: servers  ## Measure what exactly-once costs: CPU per million readings with the ledger and without
	@$(BIN)/rayapp bench-ledger

.PHONY: chaos
chaos: sim  ## Break everything again and again under load (SEED=… MINUTES=20), and judge every reading
	@$(BIN)/rayapp chaos $(if $(SEED),--seed $(SEED)) --minutes $(MINUTES)

.PHONY: check
check: env  ## What needs no server: format, lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: cmocka
cmocka:
	@test -e /usr/include/cmocka.h || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libcmocka-dev; \
	  else echo "the simulator's unit tests will be skipped; run: apt-get install -y libcmocka-dev"; fi; }

.PHONY: test
test: sim cmocka  ## The whole suite with real servers, from nothing
	@$(BIN)/python tests/run_all.py

.PHONY: unit
unit: env  ## Tests of pure logic alone, in seconds
	$(BIN)/pytest tests/unit tests/contract

.PHONY: lock
lock: env  ## Resolve the dependencies anew into requirements.lock
	$(UV) pip compile --quiet pyproject.toml --group dev --generate-hashes --universal --python-version 3.11 --upgrade -o requirements.lock

.PHONY: clean
clean:  ## Remove what was built (not the download cache)
	rm -rf $(VENV) .bench .stack dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@$(MAKE) --no-print-directory -C firmware/sim clean
