# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The check against the kernel: what it calls an error, the kernel refuses.

Each program, right or wrong or random, is checked and loaded. The other way round there is no promise: the
verifier refuses more; how much of it is foreseen is measured, and must not become worse.
"""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from loader import sys as bpf_sys
from loader.objects import Map, Program
from loader.plan import with_offers
from loader.verifier import VerifierError, parse_log
from pybpfasm.asm import Asm
from pybpfasm.check import Severity, check
from pybpfasm.check.early import first_mistake
from pybpfasm.check.rights import rights_of
from pybpfasm.diagnosis import diagnose
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, Helper, ProgType
from pybpfasm.program import ProgramSpec, sched_cls
from tests.requires import kernel_version

ROOT = Path(__file__).resolve().parents[2]


def _module(path: Path) -> ModuleType:
    name = f"used_by_test_check_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


random_programs = _module(Path(__file__).with_name("random_programs.py"))
# Older kernels word things in other ways, and allow less: what is recorded came from 6.18.
AS_RECORDED = kernel_version() >= (6, 18)
# What 5.10 takes nevertheless.
TAKEN_ONCE = {"middle of lddw"} if kernel_version() < (6, 1) else set()
provoke = _module(ROOT / "tests" / "data" / "verifier" / "provoke.py")
examples = _module(ROOT / "tests" / "unit" / "test_check.py")
generate_rights = _module(ROOT / "scripts" / "generate_rights.py")


class Loader:
    """Loads programs with maps of its own, and says only whether the kernel takes them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._maps: dict[str, int] = {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def takes(self, spec: ProgramSpec) -> bool:
        for m in spec.maps:
            if m.name not in self._maps:
                self._maps[m.name] = self._stack.enter_context(Map.create(m)).fd
        result = bpf_sys.prog_load(
            int(spec.type),
            spec.code(self._maps),
            license=spec.license,
            expected_attach_type=int(spec.expected_attach_type or 0),
        )
        if result.fd >= 0:
            os.close(result.fd)
        return result.fd >= 0


def judge(specs: Iterable[ProgramSpec]) -> Counter[str]:
    """Check and load; fails where an error is none. Counts what was refused, and how that was foreseen."""
    counts: Counter[str] = Counter()
    with Loader() as loader:
        for spec in specs:
            findings = check(spec)
            errors = [finding for finding in findings if finding.severity is Severity.ERROR]
            accepted = loader.takes(spec)
            early = first_mistake(spec.instructions, spec.type, spec.attach_type)
            if early is not None:
                assert not accepted, f"{early.index}: {early.message}\n{spec.listing(lines=False)}"
                counts["at assembly"] += 1
            if accepted and errors:
                pytest.fail(
                    "the kernel takes this program:\n"
                    + spec.listing(lines=False)
                    + "\n".join(map(str, errors))
                )
            counts["accepted" if accepted else "refused"] += 1
            if not accepted:
                counts["as error" if errors else "as warning" if findings else "unforeseen"] += 1
    return counts


@pytest.mark.parametrize("seed", [1, 20261121])
def test_random_programs(seed: int) -> None:
    maker = random_programs.Maker(seed)
    counts = judge(maker.program() for _ in range(700))
    assert counts["accepted"] > 30 and counts["refused"] > 300  # both kinds are there
    assert counts["at assembly"] > 100
    assert counts["as error"] > 0.85 * counts["refused"]
    assert counts["unforeseen"] < 0.05 * counts["refused"]


def test_programs_of_a_fresh_seed() -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    maker = random_programs.Maker(seed)
    judge(maker.program() for _ in range(300))


def _proxy() -> list[ProgramSpec]:
    from programs.getsockopt import getsockopt
    from programs.packet import Interface
    from programs.settings import Ports, Settings
    from programs.sk_msg import sk_msg
    from programs.sockops import sockops
    from programs.tc_egress import tc_egress
    from programs.tc_ingress import tc_ingress

    # Without BTF, which timers in maps need: these programs are loaded by their instructions alone.
    settings = with_offers(Settings(Ports.parse("8000"), timers=False))
    return [
        tc_ingress.build(settings, Interface()),
        tc_egress.build(settings, Interface()),
        getsockopt.build(settings),
        sockops.build(settings),
        sk_msg.build(settings),
    ]


def test_programs_of_the_proxy_with_one_instruction_changed() -> None:
    specs = _proxy()
    assert judge(specs) == {"accepted": len(specs)}
    maker = random_programs.Maker(7)
    counts = judge(itertools.islice(maker.mutants(specs), 120))
    assert counts["accepted"] > 20 and counts["refused"] > 20
    assert counts["unforeseen"] < 0.4 * counts["refused"]


def test_the_examples_of_the_unit_tests() -> None:
    with Loader() as loader:
        for name, text in examples.RIGHT.items():
            assert loader.takes(examples.spec_of(text)), name
        for name, (text, (severity, _, _)) in examples.WRONG.items():
            if severity == "error" and name not in TAKEN_ONCE:
                assert not loader.takes(examples.spec_of(text)), name
        for name, (text, type, attach, wrong) in examples.TYPED.items():
            assert loader.takes(examples.spec_of(text, type, attach)) is (wrong is None), name


def test_unset_memory_is_refused_without_capabilities(run_without: Callable[..., str]) -> None:
    """What the check warns of; and the same programs with all bytes written are taken."""
    zeros = "".join(f"*(u64 *)(r10 {at:+}) = 0\n" for at in range(-24, 0, 8))
    texts = [text for text, expected in examples.WRONG.values() if expected[1] == "stack-unset"]
    assert len(texts) > 3
    code = (
        "from tests.kernel.test_check import Loader, examples\n"
        "with Loader() as loader:\n"
        f"    taken = [[loader.takes(examples.spec_of(zeros + text)) for zeros in ('', {zeros!r})]"
        f" for text in {texts!r}]\n"
        "raise SystemExit(f'TakenError: {taken}')"
    )
    found = run_without("CAP_PERFMON,CAP_SYS_ADMIN", code)
    assert found == f"TakenError: {[[False, True]] * len(texts)}"


def _objects() -> Iterator[Path]:
    yield from sorted((ROOT / "tests" / "data" / "elf").glob("*.o"))


def test_objects_of_clang_have_no_errors() -> None:
    """Kernel tests of the objects load them all."""
    from pybpfasm.elf import read_object

    programs = 0
    for path in _objects():
        for program in read_object(path.read_bytes()).programs.values():
            programs += 1
            assert [str(f) for f in check(program) if f.severity is Severity.ERROR] == [], path
    assert programs > 20


def test_messages_are_still_what_they_were() -> None:
    """Each program that was made to be refused still is, with a message that is known."""
    for result in provoke.run():
        if result["errno"] == errno.ENOSPC and not AS_RECORDED:
            continue  # before 6.4 it is the end of a log for which there is no room
        found = diagnose(parse_log(result["log"]).messages)
        assert found is not None, result
        if AS_RECORDED:
            assert found.key == result["key"], result["name"]


@sched_cls()
def packet_moves(b: Asm, ctx: SkBuff) -> None:
    b.r6 = ctx
    b.r7 = ctx.data
    b.r8 = ctx.data_end
    b.r2 = b.r7
    b.r2 += 14
    b.If(b.r2 > b.r8).goto("out")
    b.r1 = b.r6
    b.r2 = 40
    b.call(Helper.skb_pull_data)
    b.r0 = b.u8[b.r7]
    b.label("out")
    b.ret(0)


def test_a_rejection_tells_what_led_to_it() -> None:
    with pytest.raises(VerifierError) as caught:
        Program.load(packet_moves.build()).close()
    error = caught.value
    assert error.diagnosis is not None and error.diagnosis.key == "scalar-access"
    assert error.location is not None and error.location.text == "b.r0 = b.u8[b.r7]"
    shown = str(error).splitlines()
    number = "a number, nothing known of it"
    assert any("r7 = " in line and number in line for line in shown) or kernel_version() < (6, 1)
    assert any(line.endswith("b.call(Helper.skb_pull_data)") and "the call is at" in line for line in shown)
    assert any(line.startswith("  why: r7 is a plain number") for line in shown)
    path = shown[shown.index("  the way there:") + 1 :]
    assert path[-1].endswith("b.r0 = b.u8[b.r7]") and len(path) > 4


@pytest.mark.parametrize(
    ("type", "attach"),
    [
        (ProgType.SCHED_CLS, None),
        (ProgType.XDP, None),
        (ProgType.SK_MSG, None),
        (ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_GETSOCKOPT),
    ],
)
def test_helpers_of_a_type_are_those_that_the_kernel_allows(
    type: ProgType, attach: AttachType | None
) -> None:
    rights = rights_of(type, attach)
    allowed = generate_rights.allowed_helpers((int(type), int(attach or 0)))
    assert rights.helpers is not None and rights.helpers >= frozenset(allowed)
    if AS_RECORDED:
        assert rights.helpers == frozenset(allowed)
    assert Helper.map_lookup_elem in allowed and Helper.override_return not in allowed


@pytest.mark.parametrize(
    ("type", "attach"), [(ProgType.SCHED_CLS, None), (ProgType.SK_LOOKUP, AttachType.SK_LOOKUP)]
)
def test_the_context_of_a_type_is_what_the_kernel_lets_access(
    type: ProgType, attach: AttachType | None
) -> None:
    ours = rights_of(type, attach).context
    theirs = generate_rights.context((int(type), int(attach or 0)))
    assert ours is not None
    if kernel_version() >= (6, 1):
        assert ours == theirs
    for known, allowed in zip(ours[:2], theirs[:2], strict=True):
        assert allowed.keys() == known.keys()
        assert all(allowed[size] & ~known[size] == 0 for size in known)
