# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the three candidates have in common: constants, and the map that they look up."""

from __future__ import annotations

from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import U16, Be16, Be32, Bytes, Struct
from pybpfasm.maps import MapSpec

ENVOY_PORT = 8080


class FlowKey(Struct, kernel_name="flow_key"):
    """A client's connection to a server, 12 bytes."""

    client = Be32()
    server = Be32()
    client_port = Be16()
    protocol = U16()


class FlowValue(Struct, kernel_name="flow_value"):
    """Which port the connection was for."""

    original_port = Be16()
    pad = Bytes(6)


FLOWS = MapSpec("flows", MapType.HASH, FlowKey, FlowValue, 1024)
