# `make demo` and `make test` each do all their set-up: a virtual environment in this checkout, made once and reused.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PARITY := $(VENV)/.parity
export OMP_NUM_THREADS ?= 2
export MKL_NUM_THREADS ?= 2

.PHONY: demo test lint format docs pages bench gpu clean tools

demo: $(READY)
	$(VENV)/bin/soundomni demo --out demo

test: $(PARITY) tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) -m pytest -q --numprocesses 2 --dist loadfile --max-worker-restart 0

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir site

# Refreshes the generated parts of docs/.
pages: $(READY)
	$(PYTHON) docs/fill.py

bench: $(READY)
	$(PYTHON) -m pytest benchmarks/bench_*.py --benchmark-only -q

# What has to hold on one GPU, step by step: `make gpu STEPS=0-4`. A second call resumes.
gpu: export OMP_NUM_THREADS := $(shell nproc)
gpu: export MKL_NUM_THREADS := $(shell nproc)
gpu: $(READY)
	$(PYTHON) -m benchmarks.gpu --steps "$(STEPS)"

$(READY): pyproject.toml requirements/dev.txt
	@test -x $(VENV)/bin/pip || python3 -m venv --clear $(VENV) || \
		{ echo "python3 cannot make virtual environments here: sudo apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m pip install --quiet --constraint requirements/dev.txt --editable '.[dev]'
	touch $(READY)

# The tests compare with stable-audio-tools, diffusers, peft and bitsandbytes themselves.
$(PARITY): $(READY) requirements/stable-audio-tools.txt requirements/adapters.txt
	$(PYTHON) -m pip install --quiet --no-deps --requirement requirements/stable-audio-tools.txt --requirement requirements/adapters.txt
	touch $(PARITY)

# The spoken-digits example and its test speak with espeak-ng and convert with sox; a test opens the demo's page in chromium.
TOOLS := espeak-ng sox chromium chromium-driver
tools:
	@if ! command -v espeak-ng >/dev/null || ! command -v sox >/dev/null || ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && apt-get install -y -qq $(TOOLS); \
		elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then \
			sudo -n apt-get update -qq && sudo -n apt-get install -y -qq $(TOOLS); \
		else \
			echo "the tests need more of the system's packages: sudo apt-get install $(TOOLS)" >&2; exit 2; \
		fi; \
	fi

clean:
	rm -rf $(VENV) demo runs site gpu-results
