# Everything a checkout needs, from nothing but Python 3.11 or newer and make.
#
# The file stays within GNU make 3.81, the one a Mac has: no .ONESHELL, `!=`, `&:` or $(file).
# What takes more than a line is a script in tools/setup/.

SHELL := /bin/sh
.DEFAULT_GOAL := help
# The steps of `make test` run in the order they are named, also under -j.
.NOTPARALLEL:

BIN := .venv/bin
# A stamp is written when its step succeeded, so a second run does nothing and an interrupted one
# starts that step again.
STAMPS := .venv/.stamps
# Stamps mean nothing when the environment lost its Python or the checkout was moved.
_ := $(shell [ -x $(BIN)/python ] && [ "$$(cat $(STAMPS)/venv 2>/dev/null)" = "$$(pwd -P)" ] || rm -rf $(STAMPS))
PACKAGES := tools/setup/system-packages.sh

# Most tests wait for a server now and then: two processes take turns. The tests of a file, which share
# a server, stay together.
PARALLEL ?= -n 2 --dist loadfile

# Passed on to the command behind `serve`, `unit`, `conformance`, `fuzz`, `chaos`, `bench` and `starter`.
ARGS ?=

.PHONY: help setup setup-dev serve test lint format types contracts unit conformance fuzz chaos bench starter lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

setup: $(STAMPS)/runtime ## create .venv and install what serving needs
	@:

setup-dev: $(STAMPS)/dev ## add what tests and checks need
	@:

serve: setup ## start MLX Manager (ARGS="--port 8000" is passed on)
	@exec $(BIN)/mlx-manager serve $(ARGS)

test: lint types contracts unit ## run every check: what CI runs
	@echo "==> All checks passed"

lint: setup-dev ## ruff: rules and formatting
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .

format: setup-dev ## let ruff repair and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup-dev ## mypy, strict
	@echo "==> mypy"
	@$(BIN)/mypy

contracts: setup-dev ## import-linter: which layer may import which
	@echo "==> lint-imports"
	@$(BIN)/lint-imports --no-logo

unit: setup-dev ## pytest, in two processes (ARGS="-k words" is passed on; PARALLEL= for one process)
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

conformance: setup-dev ## check the APIs of a server with the starter model (ARGS="--group tools" is passed on)
	@$(BIN)/python -m tools.conformance $(ARGS)

fuzz: setup-dev ## send 10,000 almost valid bodies, and requests made from /openapi.json (FUZZ_BODIES, FUZZ_EXAMPLES, FUZZ_SEED)
	@FUZZ_BODIES=$${FUZZ_BODIES:-10000} FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-100} \
		$(BIN)/python -m pytest tests/server/test_fuzz.py tests/server/test_openapi.py $(ARGS)

chaos: setup-dev ## kill, hang, starve, fill and stop a server under its clients (ARGS="soak 100000": that many short requests)
	@$(BIN)/python -m tools.chaos $(ARGS)

bench: setup-dev ## compare throughput and latency with the bare engine loop and with mlx_lm.server
	@sh tools/setup/with-openblas.sh $(BIN)/python -m benchmarks $(ARGS)

# One BLAS thread each: the learner computes in two threads of its own, which is 1.4 times as fast.
starter: setup-dev ## train the built-in demonstration model anew (up to two hours)
	@OPENBLAS_NUM_THREADS=1 sh tools/setup/with-openblas.sh $(BIN)/python -m tools.starter build $(ARGS)

lock: setup-dev ## write the lock files anew (UPGRADE=yes takes the newest versions)
	@sh tools/setup/lock.sh

clean: ## remove caches and build outputs (.venv stays)
	@rm -rf build dist .cache .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find mlx_manager tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMPS)/venv:
	@sh tools/setup/create-environment.sh
	@mkdir -p $(STAMPS)
	@pwd -P >$@

# What the pages take from npm.
PAGES := tools/web/package-lock.json tools/web/build_hook.py tools/web/npm.lock

$(STAMPS)/runtime: requirements.lock pyproject.toml $(PAGES) $(STAMPS)/venv
	@sh $(PACKAGES) serve
	@sh tools/setup/install.sh requirements.lock
	@touch $@

# It holds the runtime lock's packages at the same versions, so the stamp counts for both.
$(STAMPS)/dev: requirements-dev.lock requirements.lock pyproject.toml $(PAGES) $(STAMPS)/venv
	@sh $(PACKAGES) test
	@sh tools/setup/install.sh requirements-dev.lock
	@touch $(STAMPS)/runtime $@
