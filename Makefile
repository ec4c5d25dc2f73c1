# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
#
# Needs Python 3.11 or newer, git and make. Variables: PYTHON (interpreter), VENV (folder), ARGS (for pytest or demo),
# KERNELS (for test-kernels).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
KERNELS ?=
export PYTHON VENV

PY := $(VENV)/bin/python
ROOT := $(filter 0,$(shell id -u))

.PHONY: help demo test test-unprivileged test-kernels lint bench docs wheel clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    client, gateway, server, application and Envoy in network namespaces (root)'
	@echo 'make test    lint, types and all tests; as an ordinary user those that need no kernel'
	@echo 'make test-unprivileged  the unit tests as nobody, without bpf file system and network namespaces'
	@echo 'make test-kernels  the proxy on older kernels, in virtual machines; KERNELS="6.1 6.12" (root)'
	@echo 'make lint    ruff and mypy only'
	@echo 'make bench   the benchmarks (root)'
	@echo 'make docs    the documentation as a site in site/'
	@echo 'make wheel   a wheel in dist/'
	@echo 'make clean   remove what these commands made in this folder'

demo:
ifeq ($(ROOT),)
	@echo 'make demo: network namespaces and BPF programs need root: sudo make demo' >&2; exit 1
endif
	@scripts/setup envoy
	@$(PY) -m loader demo $(ARGS)

test: lint
ifeq ($(ROOT),)
	@echo '· not root: the tests of the kernel and of the whole proxy are left out' >&2
endif
	@$(PY) -m pytest --benchmark-disable $(ARGS)

test-unprivileged:
	@scripts/setup envoy,dev
	@$(PY) scripts/test-unprivileged $(ARGS)

test-kernels:
	@scripts/test-kernels $(KERNELS) $(ARGS)

lint:
	@scripts/setup envoy,dev bpftool ip=iproute2 tc=iproute2
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

bench:
	@scripts/setup envoy,dev
	@$(PY) -m pytest tests/bench --benchmark-only $(ARGS)

docs:
	@scripts/setup docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

wheel:
	@scripts/setup envoy,dev
	@$(PY) -m build --wheel

clean:
	[ ! -e $(VENV)/pyvenv.cfg ] || rm -rf $(VENV)
	rm -rf .cache build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
