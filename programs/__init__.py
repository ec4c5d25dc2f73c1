# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What runs in the kernel: one module for each hook, and what they share."""
