# Every target installs what it needs by itself: Python 3.11+ and make are enough.
.DEFAULT_GOAL := help
# Most of what runs here is many processes that import the same thousand modules: each would compile them anew.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help install demo up down lab test demos fuzz check docs format bench bench-gate constraints clean

# What the demo injects into the treatment (failing, slow, crash, flaky, skewed), and into the telemetry (down).
TREATMENT ?=
METRICS ?=
# `make fuzz` prints it; given again, it repeats the examples.
SEED := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install:
	@scripts/install

demo: install  ## Retrain a model and roll it out with Airflow, for real (TREATMENT=failing|slow|crash|flaky|skewed, METRICS=down)
	@.venv/bin/python -m scripts.demo $(if $(TREATMENT),--treatment $(TREATMENT)) $(if $(METRICS),--metrics $(METRICS))

up: install  ## Start the local workspace and Airflow with its UI on 127.0.0.1
	@.venv/bin/python -m scripts.demo.up

down: install  ## Stop what `make up` started
	@.venv/bin/python -m scripts.demo.down

lab: install  ## Install and compile what the tests need: once, the first time for half an hour
	@.venv/bin/python -m tests.prepare

test: lab  ## Run all tests that this machine can run
	@scripts/test

demos: install  ## Run the demo with each of its faults, two at a time, and check how it ends: for minutes, on an idle machine
	@RUN_DEMOS=1 scripts/run-tests 2 pytest --durations=0 tests/local/test_demo.py -k "not leaves_nothing_running"

fuzz: install  ## Run the property tests with ten times as many, random examples (SEED=… repeats a run)
	@echo "make fuzz SEED=$(SEED)"
	@.venv/bin/pytest --quiet --numprocesses=2 --timeout=3600 --hypothesis-profile=fuzz --hypothesis-seed=$(SEED) -m hypothesis tests/unit
	@.venv/bin/python -m tests.invariants --sequences 5000 --seed $(SEED)
	@.venv/bin/python -m tests.scoring_fuzz --answers 100000 --requests 100000 --seed $(SEED)

check: install  ## Lint, types, import rules, and that the lock file fits
	@scripts/check

docs: install  ## Make the documentation's site, and check its links
	@scripts/docs

format: install  ## Format the code
	@.venv/bin/ruff check --quiet --fix . || true
	@.venv/bin/ruff format --quiet .

bench: install  ## Measure the router, the scoring runtime, shifts, the cache and the import time
	@.venv/bin/python -m tests.benchmarks

bench-gate: install  ## Simulate thousands of rollouts of every kind under the gate and other tools' rules
	@OPENBLAS_NUM_THREADS=1 .venv/bin/python -m tests.benchmarks.gate
	@OPENBLAS_NUM_THREADS=1 .venv/bin/python -m tests.benchmarks.gate.data
	@OPENBLAS_NUM_THREADS=1 .venv/bin/python -m tests.benchmarks.gate.users
	@OPENBLAS_NUM_THREADS=1 .venv/bin/python -m tests.benchmarks.gate.explained

constraints: install  ## Pin what pyproject.toml asks for (UPGRADE=1: everything anew)
	@.venv/bin/uv pip compile --quiet $(if $(UPGRADE),--upgrade) $(shell scripts/constraints-arguments)
	@scripts/lock-runtime docker/scoring $(if $(UPGRADE),--upgrade)
	@scripts/lock-image collector docker/collector $(if $(UPGRADE),--upgrade)
	@scripts/lock-image agent docker/agent $(if $(UPGRADE),--upgrade)

clean:  ## Remove what was installed and built here
	@rm -rf .venv .work .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
