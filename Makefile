# Needs python3 (3.11 or newer) with its venv module, and make. Everything else is fetched into .venv.
#
# A virtual environment is made once and again whenever what it is made from has changed: a file in
# it, the stamp, remembers when. There is one for use (.venv), and in it all that tests and linters
# need once somebody asks for them; other interpreters have one of their own (.venv-3.12).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What an installation is made from. The package itself is installed editable: its Python files are not.
SOURCES := pyproject.toml setup.py pairpool/_framing_c.c

# Further interpreters on which the core of the suite runs, where they are on this machine.
VERSIONS := 3.11 3.12 3.13
CORE_TESTS := tests/test_cpython_pool.py tests/test_compat_construction.py tests/test_compat_results.py \
	tests/test_compat_lifecycle.py tests/test_programs.py tests/test_remote_errors.py tests/test_framing.py \
	tests/test_sharing.py tests/test_groups.py

PYTEST_OPTIONS ?= -q
BENCH_OPTIONS ?=
RESULTS ?= benchmarks/results
SIDE_BY_SIDE_MAKE = $(MAKE) --no-print-directory --jobs=3 --output-sync=target SIDE_BY_SIDE=1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# The tests start thousands of processes: without bytecode each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif
.PHONY: help demo test lint typecheck suite suite-c suite-python suite-once versions bench soak fuzz sanitize clean

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: $(VENV)/.installed ## count the tokens and names of the standard library, beside multiprocessing.Pool
	@$(BIN)/python -c 'from pairpool._framing import TWIN; print(f"pairpool with its framing in {TWIN}")'
	@$(BIN)/python examples/count_stdlib.py

test: lint typecheck ## all of the following
	@$(SIDE_BY_SIDE_MAKE) suite-c suite-python suite-once $(VERSIONS:%=version-%)

lint: $(VENV)/.installed-dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-dev ## types
	$(BIN)/mypy
	$(BIN)/mypy benchmarks examples fuzz soak

suite: $(VENV)/.installed-dev ## the whole suite, once with each twin of the framing, side by side
	@$(SIDE_BY_SIDE_MAKE) suite-c suite-python suite-once

suite-c: $(VENV)/.installed-dev
	@if $(BIN)/python -c 'import pairpool._framing_c' 2>/dev/null; then \
		echo "== suite with the framing in C"; \
		PAIRPOOL_EXTENSION=1 $(BIN)/python -m pytest $(PYTEST_OPTIONS) -m 'not once'; \
	else \
		echo "== no suite with the framing in C: it was not built, for want of a compiler"; \
	fi

suite-python: $(VENV)/.installed-dev
	@echo "== suite with the framing in Python"
	PAIRPOOL_EXTENSION=0 $(BIN)/python -m pytest $(PYTEST_OPTIONS) -m 'not once'

suite-once: $(VENV)/.installed-dev
	@echo "== what is the same with either twin of the framing"
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) -m once

# Each further version is a target of its own (version-3.12). It does nothing where that interpreter
# is missing, or is the one that the whole suite has run on.
versions: $(VERSIONS:%=version-%) ## the core of the suite on further interpreters

.PHONY: $(VERSIONS:%=version-%)
$(VERSIONS:%=version-%): version-%: $(VENV)/.installed-dev
	@if $(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$*")'; then \
		:; \
	elif python=$$(.ci/find-python $*); then \
		echo "== core of the suite on $$($$python --version)"; \
		$(MAKE) --no-print-directory PYTHON="$$python" VENV=.venv-$* core; \
	else \
		echo "== no Python $* here"; \
	fi

.PHONY: core
core: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) $(CORE_TESTS)

bench: ## the benchmarks beside the other pools, with tables and charts (a quarter of an hour)
	@$(MAKE) --no-print-directory VENV=.venv-bench measure

# The other pools are installed at the versions that pyproject.toml pins, in an environment of their own.
.PHONY: measure
measure: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(BENCH_OPTIONS) \
		--json $(RESULTS)/results.json --markdown $(RESULTS)/table.md --svg $(RESULTS)

soak: $(VENV)/.installed-test ## the long runs: nothing is lost, and nothing grows (an hour with two processors)
	$(BIN)/python -m soak

fuzz: $(VENV)/.installed ## ten million hostile inputs for whatever decodes messages, in both twins
	$(BIN)/python -m fuzz.framing --inputs 10000000

sanitize: $(VENV)/.installed-test ## tests and fuzzer over the C twin with address and undefined-behaviour sanitizers
	$(BIN)/python -m fuzz.sanitize

clean: ## remove what was made
	rm -rf .venv .venv-3.* .venv-bench build pairpool.egg-info pairpool/_framing_c*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Whatever of these exists is remade after a change. A stamp is written last, so that an installation
# that failed half way is begun anew; one with more in it is one with less in it, too.
$(VENV)/.installed: $(SOURCES)
	$(call install,.)
	@touch $@

$(VENV)/.installed-test: $(SOURCES)
	$(call install,.[test])
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: $(SOURCES)
	$(call install,.[dev])
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-bench: $(SOURCES)
	$(call install,.[bench])
	@touch $(VENV)/.installed $@

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"pairpool needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '$(1)'
endef
