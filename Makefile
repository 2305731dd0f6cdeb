# Two commands are enough on a fresh machine: `make train` and `make test`.
# Variables: PYTHON (3.11 to 3.13), VENV (where to install), PRESET (what to train), PEERS (where the other packages go),
# PYTEST_ARGS (e.g. PYTEST_ARGS="-m slow").

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PRESET ?= ethanol-tiny
PEERS ?= $(or $(MDRELAX_PEERS),.peers)
PYTEST_ARGS ?=

# The first Python on the path that is recent enough, or python3 to complain about.
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUITABLE)' >/dev/null 2>&1 && echo $$p && exit; done; echo python3)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
STAMP := $(VENV)/.stamp
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

.PHONY: help venv train test lint format types check wheel peers clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(STAMP)  ## a virtual environment in .venv with the pinned dependencies and mdrelax itself (editable)

# torch is installed first and alone: the resolver might choose one with several gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(SUITABLE)' >/dev/null 2>&1 || { \
		echo "mdrelax needs Python 3.11, 3.12 or 3.13, but \`$(PYTHON)\` is" \
			"\"$$($(PYTHON) --version 2>&1 | head -n 1)\". Install one of them and name it: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "\`$(PYTHON)\` cannot make virtual environments: its module ensurepip is missing." \
			"Install it (on Debian and Ubuntu: apt-get install python3-venv) or name another Python: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

train: $(STAMP)  ## train, project, certify and run MD with the embedded ethanol set, in a few minutes
	$(BIN)/mdrelax train $(PRESET) --out runs/$(PRESET) --restart auto

test: $(STAMP)  ## the default tests, one process per core with one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## format the code and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy
	$(BIN)/mypy -p mdrelax

check: lint types test  ## all three

wheel: $(STAMP)  ## sdist and wheel in dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

# They require mutually exclusive versions of e3nn, so each has its own environment; their lists are complete, so nothing is
# resolved. Those of tests/environments contain older versions of e3nn, and none of our packages.
LISTS := $(wildcard analysis/benchmarks/peers/*.txt tests/environments/*.txt)

peers: $(patsubst %.txt,$(PEERS)/%/.stamp,$(notdir $(LISTS)))  ## the other packages that `mdrelax bench speed` and `bench accuracy` need, and older versions of e3nn

define environment
$(PYTHON) -m venv $(PEERS)/$*
$(PEERS)/$*/bin/python -m pip --disable-pip-version-check --no-input install $(TORCH)
$(PEERS)/$*/bin/python -m pip --disable-pip-version-check --no-input install --no-deps -r $<
@touch $@
endef

$(PEERS)/%/.stamp: analysis/benchmarks/peers/%.txt constraints.txt
	$(environment)

$(PEERS)/%/.stamp: tests/environments/%.txt constraints.txt
	$(environment)

clean:  ## remove build products (.venv, .peers and runs/ stay)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -path './.venv*' -prune -o -path ./.peers -prune -o -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +
