# `make demo` and `make test` each do all their set-up: a virtual environment in this checkout, made once and reused.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
export OMP_NUM_THREADS ?= 2
export MKL_NUM_THREADS ?= 2

.PHONY: demo test lint format bench clean tools

demo: $(READY)
	$(VENV)/bin/soundomni demo --out demo

test: $(READY) tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest -q

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(READY)
	$(PYTHON) -m pytest benchmarks --benchmark-only -q

$(READY): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	touch $(READY)

# The spoken-digits example and its test speak with espeak-ng and convert with sox.
tools:
	@if ! command -v espeak-ng >/dev/null || ! command -v sox >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq espeak-ng sox; \
		else \
			echo "espeak-ng and sox are needed: sudo apt-get install espeak-ng sox" >&2; exit 2; \
		fi; \
	fi

clean:
	rm -rf $(VENV) demo runs
