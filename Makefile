# Everything is installed into .venv; nothing else on the machine is touched.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Most tests keep one core busy, or wait. A file's tests share what takes long to make, so they stay together.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help venv extras format check test docs fuzz hostile demo bench faults notebooks constraints

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile

venv: $(INSTALLED) ## make .venv, or bring it up to date

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("batchcap needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

extras: venv ## also install what other captioners need: torch, several gigabytes on some machines
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[transformers]'

format: venv ## format the code and sort its imports
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

check: venv ## all that must pass before a change lands
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST)

test: venv ## the tests alone
	$(PYTEST)

docs: venv ## the documentation as a site, in site/: open site/index.html
	$(BIN)/mkdocs build --strict

fuzz: venv ## decode 200,000 mutated pictures (minutes); what crashes, hangs or takes a gigabyte is kept in fuzz/
	$(BIN)/python -m tests.hostile.fuzz --count 200000 --seed $(or $(SEED),0)

hostile: venv ## send 10,000 odd searches and 1,000 hostile statements to a catalog in each database
	$(BIN)/python -m tests.catalog.fuzz --seed $(or $(SEED),0)

demo: venv ## caption five photographs and search them
	$(BIN)/python examples/demo.py demo/photos
	$(BIN)/batchcap index demo/photos --store demo/store
	$(BIN)/batchcap sql "SELECT uri, caption FROM captions" --store demo/store
	$(BIN)/batchcap search dog --store demo/store
	$(BIN)/batchcap sql "SELECT uri, caption FROM captions WHERE caption LIKE '%man%'" --store demo/store

bench: venv ## run every benchmark (an hour or two on two cores), renew the README's table
	$(BIN)/python benchmarks/run_all.py
	$(BIN)/python docs/generate.py

faults: venv ## kill runs a hundred times over, and see that nothing is lost (half an hour on two cores)
	$(BIN)/python -m tests.faults.endure

notebooks: venv ## caption the photographs of the notebooks again
	$(BIN)/python -m model_training.notebooks.make_notebooks

# Resolved afresh, whatever .venv holds: the newest versions that pyproject.toml admits.
constraints: ## renew constraints.txt
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report .venv/report.json '.[dev,transformers]'
	{ echo "# The versions that are tested. Renew with: make constraints"; \
	  $(BIN)/python -c 'import json; \
	report = json.load(open(".venv/report.json")); \
	pins = {p["metadata"]["name"].lower(): p["metadata"]["version"].partition("+")[0] for p in report["install"]}; \
	pins.pop("batchcap"); \
	print(*(f"{name}=={pins[name]}" for name in sorted(pins)), sep="\n")'; } > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt
