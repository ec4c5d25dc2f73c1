# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Loads eBPF programs into a Linux kernel with raw ``bpf(2)`` calls, attaches and pins them.

Import the module that you need (``loader.objects``, ``loader.bpffs``, ...): this package imports nothing by
itself, so that a command starts quickly.
"""
