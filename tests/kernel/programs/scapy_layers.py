# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The layers of scapy that the tests use, imported without its warnings."""

from __future__ import annotations

import logging

logging.getLogger("scapy").setLevel(logging.CRITICAL)

from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import IPv6, in6_chksum  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402
from scapy.utils import checksum  # noqa: E402

__all__ = ["IP", "TCP", "UDP", "Ether", "IPOption_NOP", "IPv6", "Raw", "checksum", "in6_chksum"]
