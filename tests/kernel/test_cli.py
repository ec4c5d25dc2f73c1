# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The command line against the kernel: bad input gets a clear error and changes nothing; what is printed."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from loader import bpffs, cli, envoy, features, process, run
from loader.features import Feature, Support
from loader.features.named import PROBES
from loader.objects import Map, Program
from loader.process import if_killed
from loader.sys import libc
from loader.verifier import VerifierError
from programs import tc_ingress
from programs.packet import Interface
from programs.settings import Settings
from pybpfasm.asm import Asm
from pybpfasm.elf import read_object
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, MapType
from pybpfasm.layout import U32
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec, sched_cls
from tests.kernel.instances import Outcome, Site, add_dummy, delete_interface, in_child, set_down, site
from tests.patience import PATIENCE
from tests.processes import alive

__all__ = ["site"]

ROOT = Path(__file__).resolve().parents[2]
UP = ["up", "--iface", "lo", "--ports", "8000"]
AUTO = ["--accelerate", "auto"]
NOBODY = 65534
_PR_CAPBSET_DROP = 24  # linux/prctl.h
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096  # sys/mount.h
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


def without(*names: str) -> Callable[[], None]:
    """What a child does before exec to lack capabilities for good, although it is root."""

    def drop() -> None:
        for name in names:
            if libc().prctl(_PR_CAPBSET_DROP, _CAPABILITIES[name], 0, 0, 0) != 0:
                os._exit(97)

    return drop


def command(*words: str, drop: Callable[[], None] | None = None) -> Outcome:
    """Run the command line as a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "loader", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=drop,
        timeout=60 * PATIENCE,
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


def as_nobody(site: Site, *words: str) -> Outcome:
    """Run the command line in a forked child that is an ordinary user.

    No new interpreter: its files may be closed to others. So what the commands import is imported first.
    """
    import loader.down
    import loader.metrics
    import loader.up  # noqa: F401

    reading, writing = os.pipe()

    def child() -> int:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        site.capsys.readouterr()
        status = cli.main(list(words))
        captured = site.capsys.readouterr()
        with os.fdopen(writing, "w") as pipe:
            json.dump([status, captured.out, captured.err], pipe)
        return 0

    answer: list[str] = []
    with os.fdopen(reading) as pipe:
        thread = threading.Thread(target=lambda: answer.append(pipe.read()))
        thread.start()
        status = in_child(child)
        os.close(writing)
        thread.join()
    assert status == 0
    return Outcome(*json.loads(answer[0]))


def refused(site: Site, outcome: Outcome, status: int, *says: str) -> None:
    """Assert that a command failed with those words, and that nothing was changed."""
    assert outcome.status == status, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    for words in says:
        assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert site.pins() == []
    assert site.attached() == []


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--iface", "eth9"], 2, ["there is no interface 'eth9'", "known are lo"]),
        (["--iface", "lo", "--iface", "veht0"], 2, ["there is no interface 'veht0'"]),
        (["--iface", "lo" * 20], 2, ["there is no interface"]),
        (["--iface", ""], 2, ["there is no interface ''"]),
        (["--iface", "lo eth9"], 2, ["'lo eth9'", "name each by itself: --iface lo --iface eth9"]),
        (["--iface", "lo,eth9"], 2, ["'lo,eth9'", "name each by itself: --iface lo --iface eth9"]),
        (["--iface", " lo"], 2, ["' lo'", "write it without more: --iface lo\n"]),
        (["--iface", "lo", "--ports", "0"], 2, ["port 0 does not exist"]),
        (["--iface", "lo", "--ports", "70000"], 2, ["port 70000 does not exist"]),
        (["--iface", "lo", "--ports", "80-20"], 2, ["range 80-20 is backwards: write 20-80"]),
        (["--iface", "lo", "--ports", "8080"], 2, ["port 8080 is Envoy's own"]),
        (["--iface", "lo", "--name", "../etc"], 2, ["'../etc' cannot be the name of an instance"]),
        (["--iface", "lo", "--name", "staging-1"], 2, ["cannot be the name of an instance"]),
        (["--iface", "lo", "--name", ""], 2, ["cannot be the name of an instance"]),
        (["--iface", "lo", "--netns", "nosuchns"], 2, ["there is no network namespace 'nosuchns'"]),
        (["--iface", "lo", "--netns", "4194305"], 2, ["network namespace '4194305' cannot be opened"]),
        (["--iface", "lo", "--netns", "/dev/null"], 2, ["/dev/null is not a network namespace"]),
    ],
)
def test_bad_input(site: Site, words: list[str], status: int, says: list[str]) -> None:
    ports = [] if "--ports" in words else ["--ports", "8000"]
    refused(site, site.run("up", *words, *ports), status, *says)


def test_a_typo_of_an_interface_is_noticed(site: Site) -> None:
    add_dummy("eth0")
    outcome = site.run("up", "--iface", "eht0", "--ports", "8000")
    refused(
        site, outcome, 2, "there is no interface 'eht0' in this network namespace", "did you mean 'eth0'?"
    )


def test_a_cgroup_that_is_none(site: Site, tmp_path: Path) -> None:
    bpffs_words = ["--bpffs", str(site.fs.root)]
    outcome = command(*UP, *bpffs_words, "--cgroup", str(tmp_path))
    refused(site, outcome, 2, f"{tmp_path} is not a cgroup2 directory", "cgroup2 is mounted at")
    outcome = command(*UP, *bpffs_words, "--cgroup", "nosuchgroup")
    refused(site, outcome, 2, "nosuchgroup cannot be opened: No such file or directory")


def test_no_cgroup2(site: Site) -> None:
    # In a child: this mount namespace keeps its cgroup2.
    def unmount() -> None:
        if libc().unshare(0x00020000) != 0:  # CLONE_NEWNS
            os._exit(97)
        for mount in reversed(bpffs.mounts()):
            if mount.fs_type == "cgroup2" and libc().umount2(os.fsencode(mount.mount_point), 2) != 0:
                os._exit(98)

    outcome = command(*UP, "--bpffs", str(site.fs.root), drop=unmount)
    refused(site, outcome, 1, "no cgroup2 file system is mounted", "mount -t cgroup2")


def test_a_bpf_file_system_that_is_none(site: Site, tmp_path: Path) -> None:
    cgroup = ["--cgroup", str(site.cgroup.path)]
    outcome = command(*UP, *cgroup, "--bpffs", str(tmp_path))
    refused(site, outcome, 2, f"{tmp_path} is not on a bpf file system", "mount -t bpf")
    outcome = command(*UP, *cgroup, "--bpffs", str(tmp_path / "no"))
    refused(site, outcome, 2, "No such file or directory", "mkdir -p")
    for words in (["down"], ["status"]):
        assert command(*words, "--bpffs", str(tmp_path)).status == 2
    pin = site.fs.root / "pin"
    with Map.create(MapSpec("pin", MapType.ARRAY, U32(), 4, 1)) as one:
        one.pin(pin)
    outcome = command(*UP, *cgroup, "--bpffs", str(pin))
    pin.unlink()
    refused(site, outcome, 2, f"{pin} is not a directory")


def test_not_root(site: Site) -> None:
    words = ["--bpffs", str(site.fs.root)]
    up = [*UP, *words, "--cgroup", str(site.cgroup.path)]
    site.up()
    site.status()
    before = site.pins(), site.attached()
    # The folders above the bpf file system may be closed to others, and are not what is tested here.
    for directory in site.fs.root.parents:
        if directory.name.startswith(("pytest-", "popen-")) or directory == site.fs.root.parent:
            directory.chmod(0o755)
    for words_, says in (
        (up, ["this process lacks CAP_BPF (", "CAP_NET_ADMIN (", "CAP_PERFMON (", "sudo"]),
        (["down", *words], ["this process lacks CAP_BPF, CAP_NET_ADMIN", "sudo"]),
        (["status", *words], ["root"]),
        (["status", "--prometheus", *words], ["cannot be read: Permission denied", "root"]),
    ):
        outcome = as_nobody(site, *words_)
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith("error: ")
        assert "internal error" not in outcome.err
        assert all(text in outcome.err for text in says), outcome.err
        assert (site.pins(), site.attached()) == before


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        (["CAP_NET_ADMIN"], ["CAP_NET_ADMIN"]),
        (["CAP_BPF", "CAP_SYS_ADMIN"], ["CAP_BPF"]),
        (["CAP_PERFMON", "CAP_SYS_ADMIN"], ["CAP_PERFMON"]),
        (list(_CAPABILITIES), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]),
    ],
)
def test_root_without_a_capability(site: Site, lacking: list[str], named: list[str]) -> None:
    words = ["--bpffs", str(site.fs.root), "--cgroup", str(site.cgroup.path)]
    outcome = command(*UP, *words, drop=without(*lacking))
    refused(site, outcome, 1, *named, "this is root without its usual capabilities")
    for name in _CAPABILITIES.keys() - set(named):
        assert name not in outcome.err


def test_three_capabilities_are_enough(site: Site) -> None:
    words = ["--bpffs", str(site.fs.root), "--cgroup", str(site.cgroup.path)]
    assert command(*UP, *words, drop=without("CAP_SYS_ADMIN")).status == 0
    assert command(*UP, *words, "--mark", "9", drop=without("CAP_SYS_ADMIN")).status == 0
    status = command("status", "--json", *words[:2], drop=without("CAP_SYS_ADMIN")).json()
    assert status["drift"] == []
    assert command("down", *words[:2], drop=without("CAP_SYS_ADMIN")).status == 0
    assert site.pins() == []


def sandbox(only: Path | None = None) -> Callable[[], None]:
    """What a child does before exec to have the bpf file systems read-only, or one of them and no other."""

    def restrict() -> None:
        if libc().unshare(0x00020000) != 0:  # CLONE_NEWNS
            os._exit(97)
        for mount in reversed(bpffs.visible(bpffs.mounts(), "bpf")):
            if only in (None, mount.mount_point):
                process.mount("none", str(mount.mount_point), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
            elif libc().umount2(os.fsencode(mount.mount_point), 2) != 0:
                os._exit(98)

    return restrict


def test_a_read_only_bpf_file_system(site: Site) -> None:
    """A sandbox has one: another one over it would end with the sandbox, and the proxy with that."""
    outcome = command(*UP, "--cgroup", str(site.cgroup.path), drop=sandbox())
    refused(site, outcome, 1, "the bpf file system at ", " is read-only here", "ProtectKernelTunables=")
    outcome = command("doctor", drop=sandbox())
    assert outcome.status == 1
    assert ", read-only here" in outcome.out


def test_an_instance_on_a_read_only_bpf_file_system(site: Site) -> None:
    """What is there is seen, and nobody says that it is not."""
    site.up()
    before = site.pins(), site.attached()
    there = sandbox(site.fs.root)
    assert command("status", "--json", drop=there).json()["drift"] == []
    for words in (["down"], ["down", "--drain", "1"]):
        outcome = command(*words, drop=there)
        assert (outcome.status, outcome.out) == (1, "")
        assert f"the bpf file system at {site.fs.root} is read-only here" in outcome.err
    outcome = command("down", "--name", "other", drop=there)
    assert (outcome.status, outcome.err) == (0, "")
    assert "instance 'other' is not up: there was nothing to remove (up are: default)" in outcome.out
    assert (site.pins(), site.attached()) == before


@pytest.mark.parametrize("limit", [6, 8, 10, 12, 14, 16])
def test_too_few_files(site: Site, limit: int) -> None:
    """Wherever it runs out of them: the program that is loaded just then is not what is wrong."""
    words = ["--bpffs", str(site.fs.root), "--cgroup", str(site.cgroup.path)]
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit))
    outcome = command(*UP, *words, "--accelerate", "always", drop=few)
    refused(site, outcome, 1, "`ulimit -n`", "oo many open files")
    assert "verifier" not in outcome.err
    assert "defect" not in outcome.err


def test_no_proc(site: Site) -> None:
    def hide() -> None:
        if libc().unshare(0x00020000) != 0:  # CLONE_NEWNS
            os._exit(97)
        process.mount("none", "/proc", "tmpfs", 0)

    for words in (UP, ["down"], ["status"], ["doctor"]):
        outcome = command(*words, drop=hide)
        assert outcome.status == 1
        assert outcome.err.startswith("error: there is no /proc here, and with it no /proc/thread-self/")
        assert "defect" not in outcome.err


def test_more_ports_than_fit_in_a_program(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 6.18 says of 10001 separate ones is said of 1000 here, which it would take."""

    def load(spec: ProgramSpec, fds: object) -> Program:
        raise VerifierError(spec, "insn 21842 cannot be patched due to 16-bit range\nprocessed 0 insns\n")

    monkeypatch.setattr(sys.modules["loader.up"], "Program", SimpleNamespace(load=load))
    words = ["up", "--iface", "lo", "--no-accelerate", "--ports"]
    outcome = site.run(*words, ",".join(map(str, range(1, 2000, 2))))
    refused(site, outcome, 1, "1000 separate ports or ranges: insn 21842 cannot be patched", "name fewer")
    refused(site, site.run(*words, "8000"), 1, "the verifier rejected program")


def test_another_namespace_needs_sys_admin(site: Site) -> None:
    words = ["--bpffs", str(site.fs.root), "--cgroup", str(site.cgroup.path), "--netns", "1"]
    outcome = command(*UP, *words, drop=without("CAP_SYS_ADMIN"))
    assert outcome.status in (1, 2)
    refused(site, outcome, outcome.status)
    assert "CAP_SYS_ADMIN" in outcome.err or "run as root" in outcome.err


def test_nobody_listens(site: Site) -> None:
    outcome = site.up("--no-accelerate", "--envoy-port", "8099")
    assert outcome.err == (
        "warning: nothing listens on TCP port 8099, Envoy's: "
        "connections to 8000 will be refused until it does\n"
    )
    with socket.socket() as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", 8000))
    assert site.status()["envoy"] == {"port": 8099, "listening": False, "addresses": []}
    with socket.create_server(("", 8099)):
        assert site.up("--no-accelerate", "--envoy-port", "8099").err == ""
    with socket.create_server(("127.0.0.1", 8099)):
        assert "only 127.0.0.1 is listened on" in site.up("--envoy-port", "8099").err
    with socket.create_server(("", 8099)), socket.create_server(("::", 8000), family=socket.AF_INET6):
        assert "only IPv4 is listened on, by the application IPv6 too" in site.up("--envoy-port", "8099").err
        assert any("the application on IPv6 too" in one["found"] for one in site.status()["remarks"])
        with socket.create_server(("::", 8099), family=socket.AF_INET6):
            assert site.up("--no-accelerate", "--envoy-port", "8099").err == ""


@sched_cls(AttachType.TCX_INGRESS, name="pba_ingress")
def careless(b: Asm, ctx: SkBuff, settings: Settings, interface: Interface) -> None:
    """Reads a packet without asking where it ends."""
    b.r2 = ctx.data
    b.r0 = b.u8[b.r2]
    b.exit()


def test_a_verifier_rejection_shows_python_lines(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tc_ingress, "tc_ingress", careless)
    outcome = site.run(*UP)
    refused(site, outcome, 1, "the verifier rejected program 'pba_ingress'", "invalid access to packet")
    line = next(
        n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "b.u8[b.r2]" in text
    )
    assert f"test_cli.py:{line}: b.r0 = b.u8[b.r2]" in outcome.err


# --- kernels that lack something ----------------------------------------------------------------------------


def pretend_missing(monkeypatch: pytest.MonkeyPatch, *lacking: Feature) -> None:
    """Let the probes of some features answer that the kernel has none."""
    pretend(monkeypatch, Support.UNSUPPORTED, *lacking)


def pretend(monkeypatch: pytest.MonkeyPatch, support: Support, *these: Feature) -> None:
    """Let the probes of some features give that answer."""
    features.forget()  # what is known is not asked
    for feature in these:
        monkeypatch.setitem(PROBES, feature, lambda: (support, "so this test says", 22))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What a test pretends is known to no other."""
    yield
    features.forget()


@pytest.mark.parametrize("feature", [Feature.CGROUP_GETSOCKOPT_LINK, Feature.SKC_LOOKUP_TC])
def test_a_kernel_without_what_is_needed(
    site: Site, feature: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_missing(monkeypatch, feature)
    outcome = site.run(*UP)
    refused(site, outcome, 1, f"this kernel lacks {feature.value}: so this test says")


def accelerated(site: Site) -> bool:
    """What `status` says, and whether the hook is there."""
    status = site.status()
    assert status["drift"] == []
    assert any(hook["hook"] == "sk_msg" for hook in status["hooks"]) is status["settings"]["accelerate"]
    return bool(status["settings"]["accelerate"])


@pytest.mark.parametrize("feature", [Feature.SOCKHASH, Feature.SK_STORAGE_SK_MSG])
def test_a_kernel_without_what_acceleration_needs(
    site: Site, feature: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_missing(monkeypatch, feature)
    outcome = site.run(*UP, "--accelerate", "always")
    refused(site, outcome, 1, "acceleration is not possible", feature.value, "--accelerate auto")
    assert f"connections are not accelerated: this kernel lacks {feature.value}" in site.up(*AUTO).err
    assert not accelerated(site)
    site.down()
    assert site.up("--no-accelerate").err.count("accelerate") == 0


@pytest.mark.parametrize(
    ("support", "says"),
    [
        (Support.UNSUPPORTED, "on accelerated connections so this test says"),
        (Support.INCONCLUSIVE, "could not be tried (so this test says)"),
    ],
)
def test_a_kernel_whose_fionread_is_wrong(
    site: Site, support: Support, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy goes on without acceleration and says so; who insists gets it, and is told what it costs."""
    pretend(monkeypatch, support, Feature.FIONREAD)
    outcome = site.up(*AUTO)
    assert "connections are not accelerated" in outcome.err
    assert says in outcome.err
    assert "--accelerate always" in outcome.err
    assert not accelerated(site)
    outcome = site.up("--accelerate", "always")
    assert says in outcome.err
    assert "not accelerated" not in outcome.err
    assert accelerated(site)
    site.up(*AUTO)
    assert not accelerated(site)
    assert "FIONREAD" not in site.up("--no-accelerate").err


def test_what_was_asked_is_known_until_the_last_instance_is_down(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PYBPFASM_CACHE", str(cache))
    features.forget()
    command("doctor")
    assert site.run(*UP[:-1], "no ports").status == 2
    assert not cache.exists(), "only `up` writes it, and only where it succeeds"
    site.up()
    answers = json.loads((cache / "features.json").read_text())["answers"]
    assert {"feature/TCX", "feature/FIONREAD"} <= answers.keys()
    asked = []
    monkeypatch.setitem(PROBES, Feature.FIONREAD, lambda: asked.append(1))
    features.forget()
    site.up(ports="9000")
    assert asked == []
    site.down("--name", "another")
    assert cache.exists(), "there is an instance"
    site.down()
    assert not cache.exists()


def test_a_kernel_without_tcx(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_missing(monkeypatch, Feature.TCX)
    assert "by clsact" in site.up().out
    assert {h["method"] for h in site.status()["hooks"] if "interface" in h} == {"clsact"}
    site.down()


@pytest.mark.parametrize(
    ("feature", "setting", "says"),
    [
        (Feature.TIMER, "timers", "this kernel has no timers in maps"),
        (Feature.NETNS_COOKIE_SK_MSG, "netns_cookie", "this kernel has no netns cookie"),
        (Feature.NETNS_COOKIE_SOCKOPT, "netns_cookie", "this kernel has no netns cookie"),
        (Feature.COARSE_CLOCK, "coarse_clock", ""),
    ],
)
def test_a_kernel_with_less(
    site: Site, feature: Feature, setting: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_missing(monkeypatch, feature)
    outcome = site.up()
    assert says in outcome.err
    status = site.status()
    assert status["settings"][setting] is False
    assert status["drift"] == []


# --- what commands print ------------------------------------------------------------------------------------


def test_dry_run_touches_nothing_and_needs_no_rights(site: Site) -> None:
    words = [*UP, "--iface", "lo", "--cgroup", str(site.cgroup.path), "--dry-run"]
    assert command(*words).status == 0
    assert cli.main([*words, "--json"]) == 0  # imports, and reads the programs' text
    outcome = as_nobody(site, *words)
    assert outcome.status == 0, outcome.err
    assert "nothing was touched" in outcome.out
    assert "pba_ingress" in outcome.out
    assert "@ programs/tc_ingress.py:" in outcome.out
    document = as_nobody(site, *words, "--json").json()
    assert {h["hook"] for h in document["hooks"]} == {"ingress", "egress", "getsockopt", "sockops", "sk_msg"}
    assert all(h["slots"] > 10 for h in document["hooks"])
    assert set(document["listings"]) == {
        "getsockopt",
        "sockops",
        "sk_msg",
        "ingress_loopback",
        "egress_loopback",
    }
    assert document["original_destination"]
    assert (site.pins(), site.attached()) == ([], [])
    outcome = as_nobody(site, *UP[:2], "nosuch", *UP[3:], "--dry-run")
    assert outcome.status == 2


def test_dump(site: Site) -> None:
    outcome = site.run("dump", "--iface", "lo", "--ports", "8000", "--program", "pba_sk_msg")
    assert outcome.status == 0
    assert outcome.out.startswith("pba_sk_msg(struct sk_msg_md *ctx):\n")
    assert "@ programs/sk_msg.py:" in outcome.out
    assert site.run("dump", "--iface", "lo", "--ports", "8000").out.count("(struct ") >= 5
    outcome = site.run("dump", "--iface", "lo", "--ports", "8000", "--program", "nosuch")
    assert outcome.status == 2
    assert "there are pba_egress, pba_getsockopt, pba_ingress, pba_sk_msg, pba_sockops" in outcome.err


@pytest.mark.parametrize(
    "option",
    [
        "--envoy-port 8081",
        "--mark 7",
        "--no-accelerate",
        "--accelerate never",
        "--flow-capacity 9",
        "--handshake-timeout 9",
        "--linger 9",
        "--idle-timeout 9",
        "--ports 9000",
        "--cgroup {cgroup}",
        "--queue-limit 9",
        "--name other",
        "--bpffs {bpffs}",
    ],
)
def test_the_help_of_dump_has_what_makes_a_difference(site: Site, tmp_path: Path, option: str) -> None:
    """A difference in the object that it writes: code, or the size of a map."""
    with pytest.raises(SystemExit):
        cli.main(["dump", "--help"])
    name, _, value = option.partition(" ")
    shown = f"[{name}" in site.capsys.readouterr().out or name == "--ports"
    value = value.format(cgroup=site.cgroup.path, bpffs=site.fs.root)
    first, second = tmp_path / "first.o", tmp_path / "second.o"
    words = ["dump", "--iface", "lo", "--ports", "8000", "--elf"]
    assert cli.main([*words, str(first)]) == 0
    assert cli.main([*words, str(second), name, *([value] if value else [])]) == 0
    assert shown is (first.read_bytes() != second.read_bytes())


def test_dump_writes_an_object(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "proxy.o"
    outcome = site.run("dump", "--iface", "lo", "--ports", "8000", "--elf", str(path))
    assert outcome.status == 0, outcome.err
    names = set(read_object(path.read_bytes()).programs)
    assert names == {"pba_egress", "pba_getsockopt", "pba_ingress", "pba_sk_msg", "pba_sockops"}
    add_dummy("eth0")
    words = ["dump", "--iface", "lo", "--iface", "eth0", "--ports", "8000", "--elf"]
    outcome = site.run(*words, str(path))
    assert outcome.status == 2
    assert "there are several of pba_egress, pba_ingress" in outcome.err
    whole = [sys.executable, "-m", "loader", "dump", "--iface", "lo", "--ports", "8000", "--elf", "-"]
    printed = subprocess.run(whole, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    assert set(read_object(printed).programs) == names
    outcome = site.run("dump", "--iface", "lo", "--ports", "8000", "--elf", str(tmp_path / "no" / "proxy.o"))
    assert outcome.status == 1
    assert "cannot be written: No such file or directory" in outcome.err


def test_status_for_people(site: Site) -> None:
    site.up()
    outcome = site.run("status")
    assert outcome.status == 1, "nobody listens at Envoy's port"
    assert outcome.out.startswith("✗ default is not as it should be\n")
    with socket.create_server(("", 8080)), socket.create_server(("", 8000)):
        outcome = site.run("status")
    assert outcome.status == 0
    assert outcome.out.startswith("✓ default is as it should be\n")
    assert "listened on, at 0.0.0.0\n" in outcome.out
    assert "\n  no connection has been taken to Envoy yet\n" in outcome.out
    outcome = site.run("status")
    for words in ("ports 8000 on lo", "nothing listens on Envoy's port 8080", "pba_ingress", "sockhash"):
        assert words in outcome.out
    assert "All counters are 0." in outcome.out


def test_status_says_what_keeps_connections_away(site: Site) -> None:
    """What is seen from outside the proxy: listeners and interfaces."""

    def remarks() -> dict[str, str]:
        return {one["found"]: one["verdict"] for one in site.status()["remarks"]}

    add_dummy("eth7")
    site.up("--iface", "lo", iface="eth7")
    assert remarks() == {
        "nothing listens on Envoy's port 8080: connections to 8000 are refused": "bad",
        "nothing here listens on 8000: Envoy may find no application there": "note",
    }
    with socket.create_server(("127.0.0.1", 8080)), socket.create_server(("", 8000)):
        assert remarks() == {
            "Envoy listens on 127.0.0.1 only: connections to 8000 at other addresses are refused": "note"
        }
    with socket.create_server(("", 8080)), socket.create_server(("", 8000)):
        assert remarks() == {}
        set_down("eth7")
        assert site.up("--iface", "lo", iface="eth7").err.startswith(
            "warning: interface eth7 is down: no client comes in there until it is up\n"
        )
        assert remarks() == {"interface eth7 is down: no client comes in there": "note"}
        # Envoy without its mark: what it connects to would come back to it.
        with socket.create_connection(("127.0.0.1", 8000)):
            assert "\n  1 connection(s) have been taken to Envoy, 1 are known now\n" in site.run("status").out
            assert any("no connection with mark 4242 has been seen on lo" in found for found in remarks())
        with socket.socket() as marked:
            marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4242)
            marked.connect(("127.0.0.1", 8000))
            assert not any("with mark 4242" in found for found in remarks())


def test_advice_is_given_once(site: Site) -> None:
    index = add_dummy("eth7")
    site.up(iface="eth7")
    delete_interface(index)
    lines = site.run("status").out.splitlines()
    first = lines.index("✗ egress is detached: interface eth7, or what was attached to it, is gone")
    assert lines[first + 1] == "✗ ingress is detached: interface eth7, or what was attached to it, is gone"
    assert lines[first + 2] == "    → `up` with the same options puts right what can be"


def test_status_of_what_is_not_up(site: Site) -> None:
    outcome = site.run("status")
    refused(site, outcome, 1, "instance 'default' is not up")
    site.up("--name", "web")
    outcome = site.run("status", "--name", "wbe")
    assert outcome.status == 1
    assert "instance 'wbe' is not up (up are: web)" in outcome.err


def test_watch_goes_on_until_it_is_interrupted(site: Site) -> None:
    site.up()
    words = ["status", "--watch", "0.05", "--json", "--bpffs", str(site.fs.root)]
    process = subprocess.Popen(
        [sys.executable, "-m", "loader", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    opened = 0
    while opened < 3:  # three documents
        opened += process.stdout.readline() == b"{\n"
    process.send_signal(2)
    _, err = process.communicate(timeout=10 * PATIENCE)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_timings_name_the_steps(site: Site) -> None:
    document = site.up("--json", "--timings").json()
    assert {"check and assemble", "maps", "load", "attach", "publish"} <= document["timings_ms"].keys()


def test_doctor(site: Site) -> None:
    outcome = command("doctor")
    assert outcome.status == 0, outcome.out
    assert "The proxy can run here." in outcome.out
    document = command("doctor", "--json").json()
    assert document["ready"] is True
    found = {f["what"]: f["verdict"] for f in document["findings"]}
    assert found["cgroup2"] == "good"
    assert {feature.value for feature in Feature} <= found.keys()
    outcome = command("doctor", drop=without("CAP_NET_ADMIN", "CAP_BPF", "CAP_SYS_ADMIN"))
    assert outcome.status == 1
    assert "missing: CAP_BPF" in outcome.out
    assert "The proxy cannot run here yet: capabilities" in outcome.out
    # What it has no right to try it says once for all, and one by one for programs.
    assert outcome.out.count("run doctor as root") == 1
    assert Feature.TIMER.value in outcome.out
    document = command("doctor", "--json", drop=without("CAP_NET_ADMIN", "CAP_BPF", "CAP_SYS_ADMIN")).json()
    (timer,) = (one for one in document["findings"] if one["what"] == Feature.TIMER.value)
    assert timer["found"].startswith("could not be tried: ")


def test_where_queues_cannot_be_seen_there_is_no_limit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_missing(monkeypatch, Feature.QUEUE_LENGTH)
    outcome = site.up()
    assert "nothing limits how much waits in the kernel for an application" in outcome.err
    assert site.status()["settings"]["queue_limit"] is None
    assert "nothing limits" not in site.up("--no-accelerate").err


def test_doctor_names_what_is_missing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_missing(monkeypatch, Feature.CGROUP_GETSOCKOPT_LINK, Feature.TCX)
    from loader import doctor

    lines: list[str] = []
    assert doctor.run(json=True, out=lines.append) == 1
    document = json.loads("".join(lines))
    verdicts = {f["what"]: (f["verdict"], f["advice"]) for f in document["findings"]}
    assert verdicts[Feature.CGROUP_GETSOCKOPT_LINK.value][0] == "bad"
    assert verdicts[Feature.TCX.value] == ("note", "clsact is used instead")


def start_run(site: Site, *, temporary: Path | None = None) -> tuple[list[str], subprocess.Popen[str]]:
    """Start `run`, wait until its instance is there; return its arguments and the process."""
    words = ["run", *UP[1:], "--bpffs", str(site.fs.root), "--cgroup", str(site.cgroup.path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "loader", *words, "--config", "static", "--", "--concurrency", "1"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)} if temporary else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20 * PATIENCE
    while not site.fs.instances() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return words, process


def test_run_starts_envoy_and_ends_with_it(site: Site) -> None:
    words, process = start_run(site)
    try:
        assert site.fs.instances() == ["default"], process.communicate() if process.poll() else ""
        assert site.status()["envoy"]["listening"]
        outcome = command(*words)
        assert outcome.status == 1
        assert "instance 'default' is up already" in outcome.err
    finally:
        process.terminate()
        _, err = process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 128 + 15, err
    assert "Traceback" not in err
    assert site.pins() == []


def run_with(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> Outcome:
    """What `run` does with another program in Envoy's place."""
    monkeypatch.setattr(run, "_wait", lambda *arguments: None)
    monkeypatch.setattr(envoy, "validate", lambda *arguments: None)
    monkeypatch.setattr(run, "spawn", lambda command, place, **streams: process.spawn(argv, place))
    config = tmp_path / "envoy.yaml"
    config.write_text("")
    return site.run("run", *UP[1:], "--cgroup", str(site.cgroup.path), "--config", str(config))


def test_a_signal_while_run_brings_the_proxy_up_ends_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes too late for `up` to turn back, and must not be lost: whoever sent it sends no other."""
    publish = bpffs.Staging.publish

    def late(staging: bpffs.Staging, *, replace: bool = False) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return publish(staging, replace=replace)

    monkeypatch.setattr(bpffs.Staging, "publish", late)
    outcome = run_with(site, tmp_path, monkeypatch, "sleep", str(5 * PATIENCE))
    assert outcome.status == 128 + signal.SIGTERM, outcome.err
    assert site.pins() == []


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [("kill -9 $$", 137, "Envoy was ended by SIGKILL; "), ("exit 3", 3, "Envoy has ended with status 3; ")],
)
def test_how_envoy_ended_is_how_run_ends(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, status: int, says: str
) -> None:
    outcome = run_with(site, tmp_path, monkeypatch, "sh", "-c", end)
    assert outcome.status == status, outcome.err
    assert f"{says}the proxy goes down" in outcome.err
    assert site.pins() == []


def test_run_that_is_killed_leaves_nothing(site: Site, tmp_path: Path) -> None:
    """Nothing can be done in a process that gets SIGKILL; a child of it is there for that."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    _, process = start_run(site, temporary=temporary)
    try:
        assert site.fs.instances() == ["default"], process.communicate() if process.poll() else ""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2, "Envoy, and the one that clears up"
        assert list(temporary.iterdir()) != []
    finally:
        process.kill()
        _, err = process.communicate(timeout=20 * PATIENCE)  # until nobody has its standard error any more
    assert process.returncode == -9
    assert "Traceback" not in err
    assert "could not be taken down" not in err
    assert site.pins() == []
    assert site.attached() == []
    assert list(temporary.iterdir()) == []
    deadline = time.monotonic() + 10 * PATIENCE
    while any(alive(int(child)) for child in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.02)


def test_who_clears_up_may_be_gone_before(tmp_path: Path) -> None:
    """It acts where the process dies, not where it goes on, and whoever ends it does no harm."""
    mark = tmp_path / "acted"
    with if_killed(mark.touch):
        pass
    with if_killed(mark.touch) as child:
        os.kill(child, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not mark.exists()


def test_run_where_somebody_listens_already(site: Site) -> None:
    """That one would be taken for the Envoy that is to be started, whether this one can bind or not."""
    words = ["run", *UP[1:], "--bpffs", str(site.fs.root), "--cgroup", str(site.cgroup.path)]
    with socket.create_server(("127.0.0.1", 8080)):
        refused(site, command(*words), 1, "somebody listens on TCP port 8080 already, at 127.0.0.1")


@pytest.mark.parametrize("config", ["static", "original-dst-dual"])
@pytest.mark.parametrize("taken", ["listener", "--envoy-port", ""])
def test_the_envoy_file_that_run_makes(site: Site, tmp_path: Path, config: str, taken: str) -> None:
    """Its ports are those of the request, and two of `run` do not meet at the admin interface."""
    envoy_port = 9901 if taken == "--envoy-port" else 8081
    words = ["run", "--iface", "lo", "--ports", "9000", "--envoy-port", str(envoy_port)]
    request = cli._request(cli._parser(words)[0].parse_args(words))
    said: list[str] = []
    with ExitStack() as stack:
        if taken == "listener":
            stack.enter_context(socket.create_server(("127.0.0.1", 9901)))
        path = run._config(request, config, tmp_path, said.append)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    (listener,) = document["static_resources"]["listeners"]
    assert listener["address"]["socket_address"]["port_value"] == envoy_port
    admin = document["admin"]["address"]["socket_address"]["port_value"]
    assert (admin == 9901) is (taken == "")
    assert said == ([f"port 9901 is taken: Envoy's admin interface is at 127.0.0.1:{admin}"] if taken else [])
    assert ("port_value: 9000" in path.read_text(encoding="utf-8")) is (config == "static")


def test_a_static_envoy_file_has_one_application(site: Site) -> None:
    words = [
        "run",
        "--iface",
        "lo",
        "--bpffs",
        str(site.fs.root),
        "--config",
        "static",
        "--ports",
        "8000,9000",
    ]
    outcome = command(*words, "--cgroup", str(site.cgroup.path))
    refused(site, outcome, 2, "'static' sends everything to one port, and these are 8000,9000")


def test_run_with_an_envoy_that_fails(site: Site, tmp_path: Path) -> None:
    words = ["run", *UP[1:], "--bpffs", str(site.fs.root), "--cgroup", str(site.cgroup.path)]
    broken = tmp_path / "broken.yaml"
    broken.write_text("static_resources: {listeners: 7}\n")
    outcome = command(*words, "--config", str(broken))
    assert outcome.status == 1
    assert f"Envoy refuses {broken}" in outcome.err
    assert site.pins() == []
    outcome = command(*words, "--config", str(tmp_path / "no.yaml"))
    assert outcome.status == 2
    assert "there is no file" in outcome.err
