# Two commands on a fresh machine: `make demo` (a distilled model and its report) and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1

.PHONY: demo test nightly lint types layers docs release clean

demo: .venv/installed
	$(BIN)/still run quickstart

test: lint types layers
	$(BIN)/python -m pytest

# What takes minutes and changes rarely; benchmarks/RESULTS.md has the last result of each.
nightly: .venv/installed
	$(BIN)/python -m pytest -m nightly
	$(BIN)/python benchmarks/soak.py --minutes 10
	cd benchmarks && ../$(BIN)/python -m zoo --quick

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/basedpyright

layers: .venv/installed
	$(BIN)/lint-imports

docs: .venv/installed
	$(BIN)/python -m stillhouse.cli.generate_docs docs

# The sdist and the wheel made from it, in dist/, and a check of what is inside them.
release: .venv/installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python tools/check_release.py

# constraints.txt holds the versions that were tested together.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,dev]"
	$(BIN)/still fetch-embedded
	touch $@

clean:
	rm -rf .venv build dist
