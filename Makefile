# Everything is installed into .venv; nothing else on the machine is touched.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv format check test demo bench notebooks constraints

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile

venv: $(INSTALLED) ## make .venv, or bring it up to date

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("batchcap needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

format: venv ## format the code and sort its imports
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

check: venv ## all that must pass before a change lands
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest

test: venv ## the tests alone
	$(BIN)/pytest

demo: venv ## caption five photographs and search them
	$(BIN)/python examples/demo.py demo/photos
	$(BIN)/batchcap index demo/photos --store demo/store
	$(BIN)/batchcap sql "SELECT uri, caption FROM captions" --store demo/store
	$(BIN)/batchcap search dog --store demo/store
	$(BIN)/batchcap sql "SELECT uri, caption FROM captions WHERE caption LIKE '%man%'" --store demo/store

bench: venv ## run every benchmark
	@set -e; for script in $(filter-out benchmarks/common.py,$(wildcard benchmarks/*.py)); do echo "$(BIN)/python $$script"; $(BIN)/python $$script; done

notebooks: venv ## caption the photographs of the notebooks again
	$(BIN)/python -m model_training.notebooks.make_notebooks

# Resolved afresh, whatever .venv holds: the newest versions that pyproject.toml admits.
constraints: ## renew constraints.txt
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report .venv/report.json '.[dev]'
	{ echo "# The versions that are tested. Renew with: make constraints"; \
	  $(BIN)/python -c 'import json; \
	report = json.load(open(".venv/report.json")); \
	pins = {p["metadata"]["name"].lower(): p["metadata"]["version"] for p in report["install"]}; \
	pins.pop("batchcap"); \
	print(*(f"{name}=={pins[name]}" for name in sorted(pins)), sep="\n")'; } > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt
