# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The loader's readings of tables that the kernel prints, and its errors; no kernel is asked."""

from __future__ import annotations

import ctypes
import errno
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="the loader's tables are Linux's")

from loader import perf, vmlinux
from loader import sys as bpf_sys
from loader.bpffs import BpfFs, check_name, parse_mountinfo, visible
from loader.errors import BpfError, CapabilityError, KernelFeatureError, LoaderError, UsageError
from loader.netns import Listener, parse_proc_net_tcp
from loader.objects.map import parse_cpu_list
from loader.sys import object_name, syscall_number
from pybpfasm.kernel.enums import Cmd

MOUNTINFO = r"""
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
23 22 0:21 / /sys rw,nosuid shared:2 - sysfs sysfs rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime master:3 shared:4 - cgroup2 cgroup2 rw,nsdelegate
50 23 0:40 / /sys/fs/bpf ro,nosuid - bpf first rw
51 50 0:41 / /sys/fs/bpf rw,nosuid - bpf pybpfasm rw,mode=700
52 22 0:42 /a\040b /mnt/a\040dir\134x rw - bpf bpf rw
nonsense
53 22 0:43 / /mnt/short
""".lstrip()


def test_mountinfo_fields_escapes_and_nonsense() -> None:
    table = parse_mountinfo(MOUNTINFO)
    assert [m.mount_id for m in table] == [22, 23, 31, 41, 50, 51, 52]
    unified = table[3]
    assert (unified.fs_type, unified.mount_point) == ("cgroup2", Path("/sys/fs/cgroup/unified"))
    assert unified.super_options == ("rw", "nsdelegate")
    assert (table[6].mount_point, table[6].root) == (Path("/mnt/a dir\\x"), "/a b")
    assert (table[4].read_only, table[5].read_only) == (True, False)


def test_a_mount_that_is_covered_does_not_count() -> None:
    found = visible(parse_mountinfo(MOUNTINFO), "bpf")
    assert [m.source for m in found] == ["pybpfasm", "bpf"]
    assert visible(parse_mountinfo(MOUNTINFO), "cgroup") == []


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "staging-1-2-x", "-a", "x" * 64, "ä"])
def test_names_that_no_instance_can_have(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)
    with pytest.raises(UsageError):
        BpfFs(Path("/nowhere"), False).staging(name)


def test_listeners_of_both_families() -> None:
    v4 = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4
"""
    v6 = """\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 0:0
   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0
"""
    import sys

    if sys.byteorder != "little":
        pytest.skip("the words above are those of a little-endian machine")
    assert parse_proc_net_tcp(v4) == [Listener(ip_address("127.0.0.1"), 8080)]
    assert parse_proc_net_tcp(v6) == [
        Listener(ip_address("::"), 8081),
        Listener(ip_address("2001:db8::1"), 80),
    ]
    assert [one.is_any for one in parse_proc_net_tcp(v6)] == [True, False]


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-1,4,6-7\n", 5)])
def test_cpu_lists(text: str, count: int) -> None:
    assert parse_cpu_list(text) == count


@pytest.mark.parametrize(
    ("machine", "bits", "number"),
    [
        ("x86_64", 64, 321),
        ("x86_64", 32, 357),
        ("aarch64", 64, 280),
        ("aarch64", 32, 386),
        ("riscv64", 64, 280),
        ("s390x", 64, 351),
        ("ppc64le", 64, 361),
    ],
)
def test_system_call_numbers(machine: str, bits: int, number: int) -> None:
    assert syscall_number(machine, pointer_bits=bits) == number


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(KernelFeatureError, match="vax"):
        syscall_number("vax")


@pytest.mark.parametrize(
    ("name", "kept"),
    [("flows", b"flows"), ("tc-ingress programm", b"tc_ingress_prog"), ("ü", b"_"), ("", b"")],
)
def test_object_names_are_what_the_kernel_takes(name: str, kept: bytes) -> None:
    assert object_name(name) == kept


class Kernel:
    """A bpf(2) that answers with a list of errno values, then with a descriptor."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.calls = 0

    def __call__(self, command: int, attr: object, size: int) -> int:
        self.calls += 1
        if not self.answers:
            return 9
        ctypes.set_errno(self.answers.pop(0))
        return -1


@pytest.mark.parametrize(
    ("command", "answers", "calls", "failure"),
    [
        (Cmd.MAP_CREATE, [errno.EINTR] * 20, 21, 0),
        (Cmd.PROG_LOAD, [errno.EAGAIN] * 4, 5, 0),
        (Cmd.PROG_LOAD, [errno.EAGAIN] * 5, 5, errno.EAGAIN),
        (Cmd.MAP_CREATE, [errno.EAGAIN], 1, errno.EAGAIN),
        (Cmd.PROG_LOAD, [errno.EACCES], 1, errno.EACCES),
    ],
)
def test_what_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, command: Cmd, answers: list[int], calls: int, failure: int
) -> None:
    kernel = Kernel(*answers)
    monkeypatch.setattr(bpf_sys, "_syscall", kernel)
    try:
        assert bpf_sys.bpf(command, bpf_sys.OneFieldAttr(1), "it") == 9
        assert failure == 0
    except BpfError as error:
        assert (error.errno, error.command, error.what) == (failure, command.name, "it")
    assert kernel.calls == calls


def test_an_error_of_bpf_is_both_an_oserror_and_ours() -> None:
    error = BpfError(errno.EEXIST, "MAP_UPDATE_ELEM", "map 'flows'", hint="look")
    assert isinstance(error, OSError) and isinstance(error, LoaderError)
    assert type(error) is BpfError  # not FileExistsError, which OSError would choose
    assert (error.errno, error.command, error.what, error.hint) == (
        17,
        "MAP_UPDATE_ELEM",
        "map 'flows'",
        "look",
    )
    assert str(error) == "BPF_MAP_UPDATE_ELEM of map 'flows' failed: File exists (EEXIST)"
    assert "ENOTSUPP" in str(BpfError(524, "LINK_CREATE"))
    again = error.about("map 'x'")
    assert (again.errno, again.hint, "map 'x'" in str(again)) == (17, "look", True)


def test_a_missing_capability_is_named() -> None:
    error = CapabilityError("no", missing=["CAP_BPF"], hint="run as root")
    assert (error.missing, error.hint, str(error)) == (("CAP_BPF",), "run as root", "no")


SYMBOLS = """
0000000000000000 A fixed_percpu_data
ffffffff81000040 T behind
ffffffff81000000 T first
ffffffff81000000 T first_too
ffffffff81000050 t in_a_module\t[one]
""".lstrip()


def test_the_size_of_a_symbol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmlinux, "KALLSYMS", tmp_path / "kallsyms")
    (tmp_path / "kallsyms").write_text(SYMBOLS)
    sizes = [vmlinux.kernel_symbol_size(name) for name in ("first", "first_too", "behind", "none")]
    assert sizes == [0x40, 0x40, 0x10, None]
    assert vmlinux.kernel_symbol_size("in_a_module") is None  # the last one: nobody knows
    (tmp_path / "kallsyms").write_text(SYMBOLS.replace("ffffffff810000", "00000000000000"))
    assert vmlinux.kernel_symbol_size("first") is None


def test_a_kprobe_is_within_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmlinux, "KALLSYMS", tmp_path / "kallsyms")
    (tmp_path / "kallsyms").write_text(SYMBOLS)
    monkeypatch.setattr(perf, "SOURCES", tmp_path)
    monkeypatch.setattr(perf, "_open", lambda attr, what: 7)
    for kind in ("kprobe", "uprobe"):
        (tmp_path / kind / "format").mkdir(parents=True)
        (tmp_path / kind / "type").write_text("8\n")
        (tmp_path / kind / "format" / "retprobe").write_text("config:0\n")
        with pytest.raises(UsageError, match="an offset of -1 is before the beginning of 'first'"):
            perf.probe(kind, "first", -1, at_return=False)
    assert perf.probe("kprobe", "first", 0x3F, at_return=False) == 7
    with pytest.raises(UsageError, match="'first' has 64 bytes: an offset of 64 is behind its end"):
        perf.probe("kprobe", "first", 0x40, at_return=False)
    assert perf.probe("uprobe", "first", 0x40, at_return=False) == 7
