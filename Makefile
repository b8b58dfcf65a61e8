# Set-up happens by itself: every target stands on one venv and one stamp file.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
ALONE = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
WORKERS ?= 2

.PHONY: demo test test-all test-min check format docs clean

demo: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/preftune demo

test: $(STAMP)
	$(ALONE) $(BIN)/pytest -n $(WORKERS) -m "not slow and not gpu"

test-all: $(STAMP)
	$(ALONE) $(BIN)/pytest -n $(WORKERS)

check: $(STAMP)
	$(BIN)/ruff check src tests docs bench examples
	$(BIN)/ruff format --check src tests docs bench examples
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix src tests docs bench examples
	$(BIN)/ruff format src tests docs bench examples

docs: $(STAMP)
	$(BIN)/python docs/generate.py

# The oldest supported pair, in a venv of its own.
test-min: .venv-min/.installed
	$(ALONE) .venv-min/bin/pytest -n $(WORKERS) -m "not slow and not gpu" --ignore tests/house

.venv-min/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/pip install -q -e '.[test]' torch==2.11.0 transformers==5.17.0
	touch $@

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preftune needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[test]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-min .pytest_cache .ruff_cache

# Ours beside TRL on this machine; README's table is made from what it leaves in bench/results.
PEERS ?= $(CURDIR)/.venv-peers/bin/python
.PHONY: bench bench-peers
bench: $(STAMP) $(PEERS)
	for each in speed.py "speed.py --dtype bfloat16" memory.py adapter.py ukp.py reference.py scale.py startup.py \
		limit.py head.py gpu.py rollout.py online.py table.py; do \
		PEERS=$(PEERS) OMP_NUM_THREADS=1 $(BIN)/python bench/$$each || exit 1; done

bench-peers: .venv-peers/.installed

$(CURDIR)/.venv-peers/bin/python: .venv-peers/.installed

.venv-peers/.installed:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q trl==1.16.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0 datasets
	touch $@

# Our objectives beside those of TRL and Liger (docs/peers.md), in the venv of the benchmarks, and the chat templates that
# TRL and llama.cpp carry.
.PHONY: test-peers mutate
test-peers: .venv-peers/.tests
	$(ALONE) .venv-peers/bin/pytest tests/peers

.venv-peers/.tests: .venv-peers/.installed
	.venv-peers/bin/pip install -q pytest pytest-timeout msgspec
	.venv-peers/bin/pip install -q --no-deps liger-kernel==0.8.5 -e .
	.venv-peers/bin/pip download -q --no-deps --no-binary llama-cpp-python -d .venv-peers/templates llama-cpp-python==0.3.36
	touch $@

# Faults put into the objectives one at a time: the tests have to notice (tests/numbers/SURVIVORS.md has the rest).
mutate: $(STAMP)
	$(BIN)/pip install -q mutmut==3.8.1
	$(ALONE) $(BIN)/mutmut run --max-children $(WORKERS)
	$(BIN)/mutmut results
