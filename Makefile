# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
#
# Needs Python 3.11 or newer, git and make. Variables: PYTHON (interpreter), VENV (folder), ARGS (for pytest or demo),
# KERNELS (for test-kernels), PLAYGROUND (for test-vagrant: single or three), DESTDIR (for install and uninstall).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
KERNELS ?=
PLAYGROUND ?= single
DESTDIR ?=
export PYTHON VENV DESTDIR

PY := $(VENV)/bin/python
ROOT := $(filter 0,$(shell id -u))

.PHONY: help demo test test-unprivileged test-kernels test-vagrant lint bench docs wheel wheelhouse install uninstall clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    client, gateway, server, application and Envoy in network namespaces (root)'
	@echo 'make test    lint, types and all tests; as an ordinary user those that need no kernel'
	@echo 'make test-unprivileged  the unit tests as nobody, without bpf file system and network namespaces'
	@echo 'make test-kernels  the proxy on older kernels, in virtual machines; KERNELS="6.1 6.12" (root)'
	@echo 'make test-vagrant  the Vagrant machine, its reboots and the systemd units; PLAYGROUND=three (root)'
	@echo 'make install    the loader, Envoy and systemd units, as a Debian package lays them out; DESTDIR= (root)'
	@echo 'make uninstall  the same, removed'
	@echo 'make lint    ruff and mypy only'
	@echo 'make bench   the benchmarks (root)'
	@echo 'make docs    the documentation as a site in site/'
	@echo 'make wheel   a wheel in dist/'
	@echo 'make wheelhouse  wheels of all that an installation without a network needs, in wheelhouse/'
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

test-vagrant:
	@scripts/test-vagrant $(if $(filter three,$(PLAYGROUND)),--three) $(ARGS)

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

wheelhouse:
	@scripts/setup envoy
	@rm -rf wheelhouse
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --wheel-dir wheelhouse '.[envoy,metrics]'

install:
	@scripts/install

uninstall:
	@scripts/install --remove

clean:
	[ ! -e $(VENV)/pyvenv.cfg ] || rm -rf $(VENV)
	rm -rf .cache build dist site wheelhouse .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
