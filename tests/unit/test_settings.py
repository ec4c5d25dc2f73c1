# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Settings: what is accepted, what it becomes, and what is said of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs.settings import MAX_PORT, Mark, Ports, Settings, SettingsError

PORT = st.integers(1, MAX_PORT)
RANGES = st.lists(st.tuples(PORT, PORT).map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=12)


@given(RANGES)
def test_ports_are_the_union_of_their_ranges(ranges: list[tuple[int, int]]) -> None:
    ports = Ports.of(ranges)
    for edge in {p + d for r in ranges for p in r for d in (-1, 0, 1)}:
        assert (edge in ports) == any(first <= edge <= last for first, last in ranges)
    # Sorted, and with at least one port between each two.
    for (_, last), (first, _) in zip(ports.ranges, ports.ranges[1:], strict=False):
        assert last + 1 < first


@given(RANGES)
def test_ports_are_written_as_they_are_read(ranges: list[tuple[int, int]]) -> None:
    ports = Ports.of(ranges)
    assert Ports.parse(str(ports)) == ports
    assert len(ports) == sum(last - first + 1 for first, last in ports.ranges)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("8000", "8000"),
        ("8000,9000-9010", "8000,9000-9010"),
        (" 9000 - 9010 , 8000 ", "8000,9000-9010"),
        ("3,1,2", "1-3"),
        ("5-9,7-12,12", "5-12"),
        ("1-65535", "1-65535"),
        ("80-80", "80"),
    ],
)
def test_ports_parse(text: str, written: str) -> None:
    assert str(Ports.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "port 0 does not exist"),
        ("70000", "port 70000 does not exist"),
        ("8000,65536", "port 65536 does not exist"),
        ("80-20", "range 80-20 is backwards: write 20-80"),
        ("http", "'http' is neither a port nor a range"),
        ("8000,", "'' is neither a port nor a range"),
        ("", "'' is neither a port nor a range"),
        ("80-", "'80-' is neither a port nor a range"),
        ("-80", "'-80' is neither a port nor a range"),
        ("80-90-100", "'80-90-100' is neither a port nor a range"),
        ("9" * 5000, "a number of thousands of digits is no port"),
        ("8000 9000", "'8000 9000' is neither a port nor a range"),
        ("٣", "is neither a port nor a range"),
        ("80.5", "is neither a port nor a range"),
    ],
)
def test_ports_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Ports.parse(text)
    assert says in str(caught.value)


def test_no_ports() -> None:
    with pytest.raises(SettingsError, match="no ports given"):
        Ports.of([])


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("4242", Mark(4242)),
        ("0x1092", Mark(4242)),
        ("0x1000/0xf000", Mark(0x1000, 0xF000)),
        ("4294967295", Mark(0xFFFFFFFF)),
    ],
)
def test_mark_parse(text: str, mark: Mark) -> None:
    assert Mark.parse(text) == mark
    assert Mark.parse(str(mark)) == mark


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "a mark of 0 is what every unmarked packet has"),
        ("4294967296", "does not fit 32 bits"),
        ("-1", "does not fit 32 bits"),
        ("0x1100/0xf000", "has bits outside its mask"),
        ("0/0", "mask of 0 matches every packet"),
        ("envoy", "'envoy' is no mark"),
        ("1/", "'1/' is no mark"),
        ("", "'' is no mark"),
    ],
)
def test_marks_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Mark.parse(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"envoy_port": 8000}, "port 8000 is Envoy's own"),
        ({"envoy_port": 9005}, "port 9005 is Envoy's own"),
        ({"envoy_port": 0}, "Envoy's port 0 does not exist"),
        ({"envoy_port": 65536}, "Envoy's port 65536 does not exist"),
        ({"flow_capacity": 0}, "flow_capacity=0 must be at least 1"),
        ({"idle_seconds": -1}, "idle_seconds=-1 must be at least 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, int], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(Ports.parse("8000,9000-9010"), **changes)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_defaults_are_those_of_the_tutorial() -> None:
    settings = Settings(Ports.parse("8000"))
    assert (settings.envoy_port, settings.mark, settings.accelerate) == (8080, Mark(4242, 0xFFFFFFFF), True)
