# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Which of the kernel tests run in a virtual machine. What a test needs of the kernel it says itself
(`tests.requires`).
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.requires import LEFT_OUT

_INSTANCE = "tests/kernel/test_instance.py"
_PROGRAMS = "tests/kernel/programs"
_SOCKETS = f"{_PROGRAMS}/test_sockops_sk_msg.py"

# All but what compares the emulator with the kernel that it was written beside: older ones differ from that
# in more than what they lack. The proxy's own programs are compared everywhere.
_COMPARED = ("differential", "helpers", "sockets")
WHOLE = ("tests/kernel", *(f"--deselect=tests/kernel/test_emulator_{name}.py" for name in _COMPARED))

# For what they ask of the kernel, and for being quick: no random programs, no long transfers.
CHOSEN = (
    "tests/kernel/test_sys_features.py",
    "tests/kernel/test_sys_clsact.py",
    "tests/kernel/test_sys_attach.py",
    "tests/kernel/test_sys_objects.py",
    "tests/kernel/test_tracing_links.py",
    f"{_INSTANCE}::test_up_makes_what_down_removes[clsact]",
    f"{_INSTANCE}::test_other_settings_take_the_place_of_the_old[clsact-words0]",
    f"{_INSTANCE}::test_interfaces_come_and_go[clsact]",
    f"{_INSTANCE}::test_a_clsact_qdisc_of_others_stays",
    f"{_INSTANCE}::test_a_connection_survives_changes[clsact]",
    f"{_PROGRAMS}/test_getsockopt.py::test_the_original_destination",
    f"{_PROGRAMS}/test_tc_devices.py::test_connections_over_veth",
    f"{_SOCKETS}::test_a_connection_of_envoy_is_enrolled_at_both_ends",
    f"{_SOCKETS}::test_peeking_and_the_number_of_bytes_that_wait",
    f"{_SOCKETS}::test_half_a_close_keeps_the_other_half",
    f"{_SOCKETS}::test_a_megabyte_both_ways_at_once",
    f"{_SOCKETS}::test_a_slot_that_is_taken_is_left_to_its_owner",
    f"{_SOCKETS}::test_a_full_map_means_native",
    f"{_SOCKETS}::test_the_same_tuple_in_two_namespaces",
    f"{_SOCKETS}::test_order_of_plain_connections",
    f"{_SOCKETS}::test_order_under_defer_accept",
    f"{_SOCKETS}::test_send_and_close_loses_nothing",
    f"{_SOCKETS}::test_the_peer_closes_while_data_is_sent",
)

# Kernels before this one get the chosen ones only: some others take for granted what came until then.
WHOLE_FROM = (6, 1)


class Counter:
    """A plugin of pytest that counts, by what was missing where a test was left out."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []
        self.left_out: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count; a skip that says not for want of what is a failure."""
        missing = dict(report.user_properties).get(LEFT_OUT)
        if report.when == "call" and report.passed:
            self.passed += 1
        elif report.skipped and missing is not None:
            self.left_out[str(missing)] = self.left_out.get(str(missing), 0) + 1
        elif report.failed or report.skipped:
            self.failed.append(report.nodeid)


def run(version: tuple[int, int], arguments: list[str]) -> dict[str, Any]:
    """Run all kernel tests, with ``--chosen`` those of `CHOSEN`, or those that the arguments name.

    Returns their numbers.
    """
    counter = Counter()
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-o", "timeout=600"]
    if not any(not one.startswith("-") for one in arguments):
        options += CHOSEN if version < WHOLE_FROM or "--chosen" in arguments else WHOLE
    pytest.main([*options, *(one for one in arguments if one != "--chosen")], plugins=[counter])
    for name in counter.failed:
        print(f"failed: {name}", flush=True)
    return {
        "passed": counter.passed,
        "failed": len(counter.failed) if counter.passed else 1,
        "left_out": counter.left_out,
    }
