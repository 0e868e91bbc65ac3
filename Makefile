# One command each; every command makes its environment first, once.
#
#   make quickstart   train and ask the bundled tiny model, offline, in a few minutes
#   make test         the suite without its slow tests
#   make test-all     the whole suite
#   make check        formatting, lint, types
#   make format       the same, mended
#   make docs         docs/cli.md and docs/reference.md, from the program's help and docstrings
#   make peers        the packages we are drop-ins for (mem0, LangGraph, LangMem), for test-all
#   make test-verl    the engine for clusters, with verl and Ray, without GPUs
#   make torture      kills, races, hostile models, faults of training; hours; figures of reliability
#   make fuzz         everything that reads what others wrote, a minute each (Linux)
#   make audit        known faults of what we depend on (needs the network), and its licences
#
# torch comes from the package index pip is set up with. Where that would bring the large CUDA
# build, ask for PyTorch's own CPU index:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
# Tests run beside each other, one on each core; 0: one after the other.
WORKERS ?= auto
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/.installed
VERL := .venv-verl
VERL_INSTALLED := $(VERL)/.installed
TORTURE_INSTALLED := $(VENV)/.torture
AUDIT := .venv-audit
AUDIT_INSTALLED := $(AUDIT)/.installed

export PYTHONHASHSEED ?= 0
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help quickstart test test-all check format docs install peers test-verl torture fuzz audit clean

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(INSTALLED)
	OMP_NUM_THREADS=$$(nproc) $(BIN)/memory-r1 quickstart

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu"

test-all: $(INSTALLED) $(PEERS_INSTALLED)
	$(PYTEST) -m "not gpu"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)
	$(BIN)/python tests/test_docs.py

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	touch $@

peers: $(PEERS_INSTALLED)

# In an environment of their own: they are heavy, and pin what they like.
$(PEERS_INSTALLED): pyproject.toml constraints.txt tests/compat/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	echo '*' > $(PEERS)/.gitignore
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --quiet \
		-r tests/compat/requirements.txt -c constraints.txt -e .
	touch $@

test-verl: $(VERL_INSTALLED)
	$(VERL)/bin/python -m pytest -W ignore tests/verl tests/test_verl.py -m "not slow"

# In an environment of its own: verl holds transformers back, and its warnings are not ours.
$(VERL_INSTALLED): pyproject.toml tests/verl/requirements.txt
	$(PYTHON) -m venv $(VERL)
	echo '*' > $(VERL)/.gitignore
	$(VERL)/bin/python -m pip install --disable-pip-version-check --quiet \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r tests/verl/requirements.txt -e .
	touch $@

# SCALE=0.1 does a tenth, ONLY="training injection" those alone.
torture: $(TORTURE_INSTALLED)
	$(BIN)/python tests/torture/run.py --scale $(or $(SCALE),1) $(if $(ONLY),--only $(ONLY))

fuzz: $(TORTURE_INSTALLED)
	$(BIN)/python tests/torture/fuzz.py --seconds $(or $(SECONDS),60)

$(TORTURE_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		-c constraints.txt -e '.[torture]'
	touch $@

# Strict: what can't be looked up, as without the network, fails like what is known to be faulty.
audit: $(INSTALLED) $(AUDIT_INSTALLED)
	$(BIN)/python tests/licences.py
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

# In an environment of its own: what it needs is no dependency of ours.
$(AUDIT_INSTALLED):
	$(PYTHON) -m venv $(AUDIT)
	echo '*' > $(AUDIT)/.gitignore
	$(AUDIT)/bin/python -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.9,<3'
	touch $@

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(PEERS)/*' -not -path './$(VERL)/*' -not -path './$(AUDIT)/*' -prune -exec rm -rf {} +
