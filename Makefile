# make help shows what there is. Everything runs in .venv, which is made on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RECIPES := $(notdir $(basename $(wildcard recipes/*.yaml)))
DEVICES := $(notdir $(basename $(wildcard devices/*.yaml)))
.DEFAULT_GOAL := help

.venv/installed: pyproject.toml
	@echo "installing edgepack, torch and the runtimes into .venv: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

BUILDS := $(patsubst dist/%/build.json,%,$(wildcard dist/*/build.json))

.PHONY: setup help check format test quick gate bench clean $(RECIPES) $(DEVICES)

setup: .venv/installed      ## create .venv and install edgepack into it

$(RECIPES): setup           ## build one recipe
	$(BIN)/edgepack build recipes/$@.yaml

$(DEVICES): setup           ## build every recipe of one device
	$(BIN)/edgepack build --device $@

gate: setup                 ## check the budgets of every build again, without building
	$(BIN)/edgepack gate $(BUILDS)

check: setup                ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup               ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup                 ## all tests, the quickstart with narrower nets too
	$(BIN)/python -m compileall -q edgepack
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

quick: setup                ## tests that take seconds
	$(BIN)/pytest -m 'not slow'

bench: setup                ## measure the figures in benchmarks/ again (run nothing else)
	$(BIN)/python benchmarks/numerics.py
	$(BIN)/python benchmarks/taps.py
	$(BIN)/python benchmarks/lowering.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/busy.py
	$(BIN)/python benchmarks/claims.py
	$(BIN)/python benchmarks/bert.py
	$(BIN)/python benchmarks/exports.py
	$(BIN)/python benchmarks/protocol.py
	$(BIN)/python benchmarks/estimate.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/commands.py
	$(BIN)/python benchmarks/interrupts.py

clean:                      ## remove bundles and the cache, keep .venv and the build history
	rm -rf .edgepack
	if [ -d dist ]; then find dist -mindepth 1 -maxdepth 1 ! -name history.jsonl -exec rm -rf {} +; fi

help:                       ## show this help
	@echo "make TARGET"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1 \2/p' Makefile | awk '{n=$$1; $$1=""; printf "  %-8s%s\n", n, $$0}'
	@echo "recipes (make RECIPE builds one):                 $(RECIPES)"
	@echo "devices (make DEVICE builds every recipe of one): $(DEVICES)"
