# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Which of the kernel tests run on every kernel, and which of them may be left out where.

A test may be left out only if a probe said that the kernel has not what it needs *and* the kernel is older
than the first version with it. A skip for any other reason is a failure.
"""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest

from loader import features
from loader.features import Feature

_INSTANCE = "tests/kernel/test_instance.py"
_PROGRAMS = "tests/kernel/programs"
_SOCKETS = f"{_PROGRAMS}/test_sockops_sk_msg.py"

# Chosen for what they ask of the kernel, and for being quick: no random programs, no long transfers.
TESTS = (
    "tests/kernel/test_sys_features.py",
    "tests/kernel/test_sys_clsact.py",
    "tests/kernel/test_sys_attach.py",
    "tests/kernel/test_sys_objects.py",
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

# Kernels before this one get only the tests of what is particular to them: the others take for granted what
# came until then (timers, the netns cookie, asking a sockhash for its program).
WHOLE_FROM = (6, 1)
BASIC = (
    "tests/kernel/test_sys_clsact.py",
    *(name for name in TESTS if name.startswith(_INSTANCE)),
)

# What a test needs of the kernel, by a pattern of its name. The first pattern that fits counts.
_ATTACH = "tests/kernel/test_sys_attach.py"
NEEDS: tuple[tuple[str, Feature], ...] = (
    (f"{_ATTACH}::test_a_tcx_link_*", Feature.TCX),
    (f"{_ATTACH}::test_order_and_revision_of_tcx_links", Feature.TCX),
    (f"{_ATTACH}::test_no_such_interface", Feature.TCX),
    (f"{_ATTACH}::test_more_programs_than_the_first_query_has_room_for", Feature.TCX),
    (f"{_ATTACH}::test_a_pinned_link_outlives_its_maker", Feature.TCX),
    (f"{_SOCKETS}::test_peeking_and_the_number_of_bytes_that_wait", Feature.FIONREAD),
)


def needed(test: str) -> Feature | None:
    """Return what a test needs that not every kernel has."""
    return next((feature for pattern, feature in NEEDS if fnmatch.fnmatchcase(test, pattern)), None)


class Chosen:
    """A plugin of pytest: leaves out what the kernel cannot do, and counts."""

    def __init__(self, version: tuple[int, int]) -> None:
        self._version = version
        self.passed = 0
        self.failed: list[str] = []
        self.left_out: dict[str, str] = {}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Leave a test out for want of a feature."""
        feature = needed(item.nodeid)
        if feature is None:
            return
        found = features.probe(feature)
        if found.support is features.Support.UNSUPPORTED and self._version < feature.since:
            self.left_out[item.nodeid] = feature.value
            pytest.skip(f"no {feature.value}: {found.reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count; an unexpected skip is a failure."""
        if report.when == "call" and report.passed:
            self.passed += 1
        elif report.failed or (report.skipped and report.nodeid not in self.left_out):
            self.failed.append(report.nodeid)


def run(version: tuple[int, int], arguments: list[str]) -> dict[str, Any]:
    """Run the chosen tests, or those that the arguments name; return their numbers."""
    chosen = Chosen(version)
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-o", "timeout=240"]
    named = [a for a in arguments if not a.startswith("-")]
    named = named or list(TESTS if version >= WHOLE_FROM else BASIC)
    pytest.main([*options, *(a for a in arguments if a.startswith("-")), *named], plugins=[chosen])
    by_feature: dict[str, int] = {}
    for feature in chosen.left_out.values():
        by_feature[feature] = by_feature.get(feature, 0) + 1
    return {
        "passed": chosen.passed,
        "failed": len(chosen.failed) if chosen.passed else 1,
        "left_out": by_feature,
    }
