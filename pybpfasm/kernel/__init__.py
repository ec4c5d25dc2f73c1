# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Facts about the kernel: enumerations and context structures, generated from a kernel's BTF."""
