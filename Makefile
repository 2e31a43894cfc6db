# Needs make and Python >= 3.11; the first target that wants it builds the environment in .venv.
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ECOSYSTEM ?= .venv-ecosystem
PORT ?= 8000
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv serve test check check-latest check-ecosystem lint format types bench docs mutants

help:
	@echo "make serve    start the server on 127.0.0.1:$(PORT) with the embedded model"
	@echo "make test     run all tests"
	@echo "make check    the whole gate: lint types docs test"
	@echo "make check-latest     all tests, with the newest version of every dependency but torch"
	@echo "make check-ecosystem  the model with trl, peft, lm_eval and quantizers (long)"
	@echo "make format   let ruff rewrite the code"
	@echo "make bench    measure recall and generation speed (long)"
	@echo "make mutants  seed faults into the NKI simulator: does a test object to each? (long)"
	@echo "make docs     build the documentation in site/"

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@set -e; found=; \
	for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: Python 3.11 or newer is needed and none was found on PATH (python3 is" \
	        "$$(python3 --version 2>/dev/null || echo missing)); install one and run make again" >&2; \
	    exit 1; \
	fi; \
	$$found -m venv $(VENV) || { \
	    echo "make: '$$found -m venv' failed; on Debian and Ubuntu install python3-venv" >&2; \
	    exit 1; \
	}
	$(BIN)/python -m pip install --disable-pip-version-check \
	    -c $(CONSTRAINTS) -e '.[serve,train,nki,dev]'
	@touch $@

serve: venv
	$(BIN)/bmojo serve --port $(PORT)

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: lint types docs test

# A newer torch is gigabytes on Linux; everything else is the newest that pyproject.toml allows.
check-latest:
	rm -rf .venv-latest && mkdir .venv-latest
	grep '^torch==' constraints.txt > .venv-latest/constraints.txt
	$(MAKE) test VENV=.venv-latest CONSTRAINTS=.venv-latest/constraints.txt

check-ecosystem:
	$(MAKE) venv VENV=$(ECOSYSTEM)
	$(ECOSYSTEM)/bin/python -m pip install --disable-pip-version-check \
	    -r tests/ecosystem/requirements.txt
	$(ECOSYSTEM)/bin/python -m benchmarks.ecosystem

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: venv
	$(BIN)/mypy

bench: venv
	$(BIN)/python benchmarks/recall.py
	$(BIN)/python benchmarks/cpu_generate.py

docs: venv
	$(BIN)/mkdocs build --strict --quiet

docs/nki-simulator.md: $(wildcard nki_kernels/simulator/*.py nki_kernels/simulator/*/*.py) | venv
	$(BIN)/python -m nki_kernels.simulator.page $@

mutants: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.nki.mutants

docs/cli.md: bmojo_neuron/cli.py | venv
	$(BIN)/python -m typer bmojo_neuron.cli utils docs --name bmojo --title "Command line" --output $@
