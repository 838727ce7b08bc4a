# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test test-slow gpu chaos lint protos bench-deps clean

# A stamp per set of extras: nothing is installed twice.
$(VENV)/.stamp-%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing shardline[$*] into $(VENV) (the first time takes a few minutes)"
	@$(PIP) install --editable '.[$(subst -,$(comma),$*)]'
	@touch $@

comma := ,

run: $(VENV)/.stamp-demo
	@$(BIN)/python -m shardline.demo $(if $(RUN_ONCE),--once)

test: lint
	$(BIN)/python -m pytest -m "not slow and not cluster" -n 2 --dist loadscope
	$(BIN)/python -m pytest -m "not slow and cluster"

test-slow: $(VENV)/.stamp-dev-demo
	$(BIN)/python -m pytest -m slow

# All that needs a GPU: tests marked `cuda`, then the formats' figures. Without one it says so.
gpu: $(VENV)/.stamp-dev-demo
	$(BIN)/python -m pytest -m cuda
	$(BIN)/python -m benchmarks.compression.gpu --json

# CHAOS_CASES=a,b picks some; CHAOS_JSON=1 ends with a line of JSON.
chaos: $(VENV)/.stamp-dev-demo
	@$(BIN)/python -m tests.chaos $(if $(CHAOS_CASES),--cases $(CHAOS_CASES)) $(if $(CHAOS_JSON),--json)

lint: $(VENV)/.stamp-dev-demo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m protos.generate --check
	$(BIN)/python -m mypy

protos: $(VENV)/.stamp-dev-demo
	$(BIN)/python -m protos.generate

bench-deps: $(VENV)/.stamp-dev-demo $(VENV)/.stamp-bench

clean:
	rm -rf $(VENV) models build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
