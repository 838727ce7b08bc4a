# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test test-slow gpu chaos lint style protos bench-deps clean

# Whether a Python is one of those that pyproject.toml takes.
fits = $(1) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null

# A stamp per set of extras: nothing is installed twice.
$(VENV)/.stamp-%: pyproject.toml
	@test -x $(BIN)/python || $(call fits,$(PYTHON)) || { echo "Shardline needs Python 3.11 or 3.12; $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1 | head -1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(call fits,$(BIN)/python) || { echo "Shardline needs Python 3.11 or 3.12; $(VENV) is of" \
		"$$($(BIN)/python --version 2>&1 | head -1). Remove it, then: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "installing shardline[$*] into $(VENV) (the first time takes a few minutes)"
	@$(PIP) install --editable '.[$(subst -,$(comma),$*)]'
	@touch $@

comma := ,

run: $(VENV)/.stamp-demo
	@$(BIN)/python -m shardline.demo $(if $(RUN_ONCE),--once)

# Types are checked while the tests with a Ray wait for one thing and another: alone that takes two minutes.
test: style
	$(BIN)/python -m pytest -m "not slow and not cluster" -n 2 --dist loadscope
	@nice -n 19 $(BIN)/python -m mypy & types=$$!; trap 'kill $$types 2>/dev/null' INT TERM; \
		$(BIN)/python -m pytest -m "not slow and cluster"; tests=$$?; wait $$types && exit $$tests

test-slow: $(VENV)/.stamp-dev-demo
	$(BIN)/python -m pytest -m slow

# All that needs a GPU: tests marked `cuda`, then the formats' figures. Without one it says so.
gpu: $(VENV)/.stamp-dev-demo
	$(BIN)/python -m pytest -m cuda
	$(BIN)/python -m benchmarks.compression.gpu --json

# CHAOS_CASES=a,b picks some; CHAOS_JSON=1 ends with a line of JSON. Error 3: nothing was lost, some cases were refused here.
chaos: $(VENV)/.stamp-dev-demo
	@$(BIN)/python -m tests.chaos $(if $(CHAOS_CASES),--cases $(CHAOS_CASES)) $(if $(CHAOS_JSON),--json)

lint: style
	$(BIN)/python -m mypy

style: $(VENV)/.stamp-dev-demo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m protos.generate --check

protos: $(VENV)/.stamp-dev-demo
	$(BIN)/python -m protos.generate

bench-deps: $(VENV)/.stamp-dev-demo
	@$(BIN)/python -m benchmarks.rivals

clean:
	rm -rf $(VENV) models build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
