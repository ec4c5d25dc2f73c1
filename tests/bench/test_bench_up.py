# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How long ``up`` takes, and where the time goes: `make bench`. Nothing here asserts a time.

The aim is 0.4 s for ``python -m loader up`` from a cold start, 30 ms of it for assembling all programs. What
each step took is in the column of extra information of the JSON report, and printed with ``-s``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loader.modes.rewrite import Rewrite
from loader.netns import ARPHRD_ETHER, ARPHRD_LOOPBACK, Interface
from loader.playground import Playground
from programs.settings import Ports, Settings

SETTINGS = {
    "one port": "8000",
    "64 ranges": ",".join(f"{first}-{first + 5}" for first in range(10000, 10640, 10)),
}


@pytest.mark.parametrize("ports", SETTINGS)
def test_assemble_all_programs(benchmark: Any, ports: str) -> None:
    """All programs for an Ethernet interface and lo, to the bytes that the kernel takes."""
    settings = Settings(Ports.parse(SETTINGS[ports]))
    interfaces = [Interface("eth0", 2, ARPHRD_ETHER), Interface("lo", 1, ARPHRD_LOOPBACK)]

    def assemble() -> dict[str, int]:
        return {
            name: len(spec.code()) // 8 for name, spec in Rewrite().programs(settings, interfaces).items()
        }

    slots = benchmark(assemble)
    assert len(slots) == 7
    benchmark.extra_info["slots"] = slots


@pytest.mark.parametrize("ports", SETTINGS)
def test_debug_information(benchmark: Any, ports: str) -> None:
    """BTF, function and line information of all programs, on top of assembling them."""
    settings = Settings(Ports.parse(SETTINGS[ports]))
    interfaces = [Interface("eth0", 2, ARPHRD_ETHER)]

    def describe(specs: list[Any]) -> int:
        return sum(len(spec.btf()) + len(spec.line_info()) for spec in specs)

    def assembled() -> tuple[tuple[list[Any]], dict[str, Any]]:
        return (list(Rewrite().programs(settings, interfaces).values()),), {}

    assert benchmark.pedantic(describe, setup=assembled, rounds=20) > 10_000


@pytest.fixture(scope="module")
def playground() -> Iterator[Playground]:
    """Namespaces, a bpf file system and a cgroup of our own."""
    with Playground() as built:
        yield built


def loader(playground: Playground, *words: str) -> dict[str, Any]:
    """Run a command as users run it; return the document that it prints."""
    result = playground.loader(*words, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


@pytest.mark.kernel
@pytest.mark.parametrize("known", [False, True], ids=["the kernel is asked", "its answers are known"])
@pytest.mark.parametrize("words", [[], ["--no-accelerate"]], ids=["accelerated", "native"])
def test_up_from_a_cold_start(
    benchmark: Any,
    playground: Playground,
    words: list[str],
    known: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The whole command: interpreter, imports, checks, assembling, loading, attaching, pinning."""
    monkeypatch.setenv("PYBPFASM_CACHE", str(tmp_path / "cache"))
    answers = tmp_path / "cache" / "features.json"
    up_words = ["up", "--iface", "eth0", "--ports", "8000", "--timings", *playground.target(), *words]
    steps: list[dict[str, float]] = []

    def up() -> None:
        document = loader(playground, *up_words)
        assert document["changed"] is True
        steps.append(document["timings_ms"])

    def down() -> None:
        said = answers.read_bytes() if known and answers.exists() else b""
        loader(playground, "down")
        if said:  # the last `down` has removed it
            answers.parent.mkdir(mode=0o700)
            answers.touch(0o600)
            answers.write_bytes(said)

    benchmark.pedantic(up, setup=down, rounds=7, warmup_rounds=1)
    for step in steps[0]:
        benchmark.extra_info[f"{step}, ms"] = round(statistics.median(s[step] for s in steps), 1)
    print(f"\n{' '.join(words) or 'accelerated'}, {'known' if known else 'asked'}: {benchmark.extra_info}")
    loader(playground, "down")


@pytest.mark.kernel
def test_up_again_without_a_change(benchmark: Any, playground: Playground) -> None:
    """The same once more, which finds that there is nothing to do."""
    words = ["up", "--iface", "eth0", "--ports", "8000", *playground.target()]
    loader(playground, *words)
    document = benchmark.pedantic(loader, args=(playground, *words), rounds=5)
    assert document["changed"] is False
    loader(playground, "down")
