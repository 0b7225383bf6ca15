# Everything from a fresh checkout, given Python 3.11 to 3.14 (with its headers) and a C++ compiler: `make demo`, `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# uv ignores the system's certificates otherwise, and fails behind a proxy that has its own (the second name is for older uv).
export UV_SYSTEM_CERTS ?= 1
export UV_NATIVE_TLS ?= 1

UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)

# Which Python to build the environments with: the first of these that fits, or the one given as `make PYTHON=...`.
PYTHON ?=
ON_PATH := python3 python3.13 python3.12 python3.11 python3.14
CANDIDATES := $(or $(PYTHON),$(ON_PATH))
# The headers count: torch.compile on a CPU and Triton's launcher on a GPU both compile against Python.h.
FITS := import os, sys, sysconfig; header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	sys.exit(not ((3, 11) <= sys.version_info < (3, 15) and os.path.exists(header)))

.PHONY: help demo setup test test-oldest lint types wheel-check clean

help:
	@echo "make demo         time dynamic mask attention against its baselines on this machine"
	@echo "make test         lint, types, wheel and every test"
	@echo "make test-oldest  the tests of kernels and tasks on the oldest supported torch and triton"
	@echo "make lint | types | wheel-check | setup | clean"

demo: setup
	.venv/bin/dmabench kernels --seqlen 8192

setup: .venv/.stamp

# One thread a worker: with more, two workers compete for the cores of a small machine.
PYTEST := -m pytest -n 2 --dist loadfile
test test-oldest: export OMP_NUM_THREADS ?= 1

test: lint types wheel-check
	.venv/bin/python $(PYTEST)

test-oldest: .venv-oldest/.stamp
	.venv-oldest/bin/python $(PYTEST) $(wildcard tests/kernels tests/tasks)

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check

# Paths in the messages are led back from the installed package to the checkout.
types: .cache/installed/.stamp
	.venv/bin/mypy | sed -E 's#^\.cache/installed/dmabench/(kernels|tasks)/#\1/#; s#^\.cache/installed/##'

# The package as a user gets it, from a folder where the checkout cannot help.
wheel-check: .cache/installed/.stamp
	cd / && PYTHONPATH="$(CURDIR)/.cache/installed" "$(CURDIR)/.venv/bin/python" -m dmabench --help >/dev/null

# The wheel is built from the sdist, never from the checkout: setuptools would add what an earlier build left in build/.
# Folders count as sources, so that a deleted file is noticed.
SOURCES := pyproject.toml $(shell find dmabench kernels tasks -not -path '*/__pycache__*')
.cache/installed/.stamp: $(SOURCES) | setup
	rm -rf .cache/dist .cache/installed
	$(UV) build -q --out-dir .cache/dist
	$(UV) pip install -q -p .venv/bin/python --no-deps --target .cache/installed .cache/dist/*.whl
	touch $@

.venv/.stamp: pyproject.toml | $(UV)
	$(call new_environment,.venv,)

# numpy: the interpreter of triton 3.6 fails with 2.4.
.venv-oldest/.stamp: pyproject.toml | $(UV)
	$(call new_environment,.venv-oldest,'torch==2.11.*' 'triton==3.6.*' 'numpy<2.4')

# uv's own Python is the last resort: it is a download that not every network allows.
define new_environment
	@python=; for candidate in $(CANDIDATES); do \
		if $$candidate -c '$(FITS)' 2>/dev/null; then python=$$($$candidate -c 'import sys; print(sys.executable)'); break; fi; \
	done; \
	[ -n "$$python" ] || ! $(UV) python install -q 3.12 2>/dev/null || python=$$($(UV) python find --managed-python 3.12); \
	[ -n "$$python" ] || { echo "No Python 3.11 to 3.14 with headers (Python.h) among: $(CANDIDATES). Install one" \
		"(Debian, Ubuntu: apt-get install python3-dev) or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	echo "$(1): $$python"; $(UV) venv -q --clear --python "$$python" $(1)
	$(UV) pip install -q -p $(1)/bin/python --group test -e . $(2)
	@touch $@
endef

.uv/bin/uv:
	@for candidate in $(PYTHON) $(ON_PATH); do \
		if $$candidate -m pip --version >/dev/null 2>&1; then \
			exec $$candidate -m pip install -q --disable-pip-version-check --root-user-action=ignore --target .uv uv; \
		fi; \
	done; \
	echo "Neither uv nor a Python with pip was found: install one (Debian, Ubuntu: apt-get install python3-pip)." >&2; exit 1

clean:
	rm -rf .venv .venv-oldest .uv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find dmabench kernels tasks tests -name __pycache__ -prune -exec rm -rf {} +
