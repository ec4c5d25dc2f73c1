# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Where things are put: bpf file systems and their instances, cgroups, network namespaces."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from loader import bpffs as bpffs_module
from loader import cgroup as cgroup_module
from loader.bpffs import BPF_FS_MAGIC, BpfFs, file_system_magic, mounts, remove_tree
from loader.cgroup import Cgroup, find_cgroup2, of_process, path_of_id
from loader.errors import ConflictError, LoaderError, UsageError
from loader.netns import ARPHRD_LOOPBACK, NetNs, interface, interface_name, interfaces, listeners
from loader.objects import Map
from loader.sys import libc
from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import U32
from pybpfasm.maps import MapSpec

NUMBERS = MapSpec("numbers", MapType.HASH, U32(), U32(), 4)


# --- the bpf file system ------------------------------------------------------------------------------------


def test_a_mount_of_ours_is_known_and_goes_when_it_is_empty(private_mounts: None, tmp_path: Path) -> None:
    made = BpfFs.mount(tmp_path)
    assert file_system_magic(tmp_path) == BPF_FS_MAGIC
    (entry,) = [m for m in mounts() if m.mount_point == tmp_path]
    assert (entry.fs_type, entry.source) == ("bpf", "pybpfasm")
    assert "mode=700" in entry.super_options
    found = BpfFs.find(tmp_path)
    assert found is not None and found.ours
    with Map.create(NUMBERS) as numbers:
        numbers.pin(tmp_path / "numbers")
    assert not made.unmount_if_unused()
    (tmp_path / "numbers").unlink()
    assert made.unmount_if_unused()
    assert [m for m in mounts() if m.mount_point == tmp_path] == []


def test_a_mount_of_others_stays(private_mounts: None, tmp_path: Path) -> None:
    assert libc().mount(b"bpf", os.fsencode(tmp_path), b"bpf", 0, None) == 0
    try:
        found = BpfFs.find(tmp_path)
        assert found is not None and not found.ours
        assert not found.unmount_if_unused()
    finally:
        assert libc().umount2(os.fsencode(tmp_path), 0) == 0


def test_the_one_in_the_mount_table_is_found_and_a_missing_one_is_made(
    private_mounts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mount in mounts():
        if mount.fs_type == "bpf":
            libc().umount2(os.fsencode(mount.mount_point), 2)
    assert BpfFs.find() is None
    made = BpfFs.ensure(default=tmp_path)
    try:
        assert made == BpfFs(tmp_path, True)
        assert BpfFs.find() == made
        assert BpfFs.ensure(default=Path("/nowhere")) == made
    finally:
        assert made.unmount_if_unused()


def test_a_path_that_is_no_bpf_file_system(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not on a bpf file system"):
        BpfFs.find(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        BpfFs.find(tmp_path / "none")
    with pytest.raises(LoaderError, match="cannot be mounted"):
        BpfFs.mount(tmp_path / "none")


def test_an_instance_appears_at_once_and_whole(bpffs: BpfFs) -> None:
    with Map.create(NUMBERS) as numbers:
        with bpffs.staging("web") as staging:
            staging.pin(numbers, "maps/numbers")
            assert bpffs.instances() == []
            assert not bpffs.path("web").exists()
            path = staging.publish()
    assert (path, bpffs.instances()) == (bpffs.path("web"), ["web"])
    with Map.from_pin(path / "maps" / "numbers"):
        pass
    assert bpffs.abandoned() == []


def test_an_instance_that_fails_leaves_nothing(bpffs: BpfFs) -> None:
    with Map.create(NUMBERS) as numbers:
        with pytest.raises(RuntimeError):
            with bpffs.staging("web") as staging:
                staging.pin(numbers, "maps/numbers")
                raise RuntimeError
    assert [p.name for p in bpffs.root.iterdir() if "." not in p.name] == []  # the kernel's own have a dot


def test_a_name_that_is_taken(bpffs: BpfFs) -> None:
    with Map.create(NUMBERS) as first, Map.create(NUMBERS) as second:
        with bpffs.staging("web") as staging:
            staging.pin(first, "numbers")
            staging.publish()
        with pytest.raises(ConflictError, match="'web' exists"):
            with bpffs.staging("web") as staging:
                staging.pin(second, "numbers")
                staging.publish()
        with Map.from_pin(bpffs.path("web") / "numbers") as found:
            assert found.id == first.id
        with bpffs.staging("web") as staging:
            staging.pin(second, "numbers")
            staging.publish(replace=True)
        with Map.from_pin(bpffs.path("web") / "numbers") as found:
            assert found.id == second.id
    assert [p.name for p in bpffs.base.iterdir()] == ["web"]


def test_replacing_where_the_kernel_cannot_exchange(bpffs: BpfFs, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldLibc:
        """A C library whose renameat2 always answers EINVAL, as the bpf file system did before 5.16."""

        def renameat2(self, *_: object) -> int:
            import ctypes
            import errno

            ctypes.set_errno(errno.EINVAL)
            return -1

    with Map.create(NUMBERS) as first, Map.create(NUMBERS) as second:
        with bpffs.staging("web") as staging:
            staging.pin(first, "numbers")
            staging.publish()
        monkeypatch.setattr(bpffs_module, "libc", OldLibc)
        with pytest.raises(ConflictError):
            with bpffs.staging("web") as staging:
                staging.publish()
        with bpffs.staging("web") as staging:
            staging.pin(second, "numbers")
            staging.publish(replace=True)
        with Map.from_pin(bpffs.path("web") / "numbers") as found:
            assert found.id == second.id
    assert [p.name for p in bpffs.base.iterdir()] == ["web"]


def test_what_a_killed_loader_leaves_is_found(bpffs: BpfFs) -> None:
    script = (
        "import os, sys; from pathlib import Path; from loader.bpffs import BpfFs;"
        "BpfFs(Path(sys.argv[1]), True).staging('web').__enter__(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, bpffs.root], check=True, timeout=60)
    with bpffs.staging("mine"):
        (left,) = bpffs.abandoned()
    assert left.name.endswith("-web")
    remove_tree(left)
    assert bpffs.abandoned() == []


def test_the_lock_is_exclusive(bpffs: BpfFs) -> None:
    with bpffs.lock():
        with pytest.raises(ConflictError, match="another loader"):
            with bpffs.lock(wait=False):
                pass
    with bpffs.lock(wait=False):
        pass


def test_remove_tree_of_nothing(bpffs: BpfFs) -> None:
    assert remove_tree(bpffs.root / "none") == []


# --- cgroups ------------------------------------------------------------------------------------------------


def test_cgroup2_is_found_in_the_mount_table() -> None:
    root = find_cgroup2()
    assert (root / "cgroup.procs").exists()
    with Cgroup.open() as opened:
        assert opened.path == root
        assert path_of_id(opened.id) == root


def test_a_cgroup_is_known_by_its_id(cgroup: Cgroup) -> None:
    below = Cgroup.create(cgroup.path / "below")
    try:
        assert path_of_id(below.id) == below.path
        with Cgroup.open(below.path.relative_to(find_cgroup2())) as again:
            assert again.id == below.id
    finally:
        below.remove()
    assert path_of_id(below.id) is None


def test_processes_move_in_and_out(cgroup: Cgroup) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        before = of_process(child.pid)
        cgroup.add(child.pid)
        assert cgroup.processes() == [child.pid]
        assert of_process(child.pid) == cgroup.path
        with pytest.raises(LoaderError, match="cannot be removed"):
            Cgroup.open(cgroup.path).remove(timeout=0.05)
        with Cgroup.open(before) as home:
            cgroup.remove(move_to=home)
        assert of_process(child.pid) == before
        assert not cgroup.path.exists()
    finally:
        child.kill()
        child.wait()
    with pytest.raises(UsageError, match="no process"):
        of_process(child.pid)


def test_what_is_no_cgroup2_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a cgroup2 directory") as caught:
        Cgroup.open(tmp_path)
    assert str(find_cgroup2()) in caught.value.hint
    with pytest.raises(UsageError, match="No such file"):
        Cgroup.open(tmp_path / "none")
    with pytest.raises(UsageError, match="'' is no cgroup2 directory"):
        Cgroup.open("")
    with pytest.raises(UsageError, match="not a cgroup2 directory"):
        Cgroup.create(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_cgroup2_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_module, "mounts", list)
    with pytest.raises(LoaderError, match="no cgroup2") as caught:
        find_cgroup2()
    assert "mount" in caught.value.hint


# --- network namespaces -------------------------------------------------------------------------------------


def test_interfaces(netns: NetNs) -> None:
    lo = interface("lo")
    assert (lo.index, lo.link_type, lo.link_type_name) == (1, ARPHRD_LOOPBACK, "loopback")
    assert lo.has_mac_header
    assert interface_name(1) == "lo"
    assert interface_name(4711) is None
    assert interfaces()[0] == "lo"
    with pytest.raises(UsageError, match="no interface 'l0'") as caught:
        interface("l0")
    assert "did you mean 'lo'?" in caught.value.hint
    with pytest.raises(UsageError):
        interface("a name that is too long for one")


def test_entering_and_coming_back(netns: NetNs, outer_netns: NetNs) -> None:
    def here() -> list[bool]:
        return [netns.is_current, outer_netns.is_current]

    assert here() == [True, False]
    with pytest.raises(RuntimeError):
        with outer_netns.entered():
            assert here() == [False, True]
            with netns.entered(), netns.entered():
                assert here() == [True, False]
            assert here() == [False, True]
            raise RuntimeError
    assert here() == [True, False]


def test_other_threads_stay_where_they_are(netns: NetNs, outer_netns: NetNs) -> None:
    inside, done = threading.Event(), threading.Event()

    def stay() -> None:
        with outer_netns.entered():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    try:
        assert inside.wait(10)
        assert netns.is_current
    finally:
        done.set()
        thread.join()


def test_naming_a_namespace(netns: NetNs, tmp_path: Path) -> None:
    with NetNs.open(os.getpid()) as by_pid, NetNs.open(str(os.getpid())) as by_text:
        # The process's namespace is that of its first thread, which is this one.
        assert by_pid.ino == by_text.ino == netns.ino
    with NetNs.open("/proc/thread-self/ns/net") as by_path:
        assert by_path.ino == netns.ino
    with pytest.raises(UsageError, match="no network namespace 'nowhere'"):
        NetNs.open("nowhere")
    for wrong in ("/proc/self/ns/mnt", str(tmp_path), "/dev/null"):
        with pytest.raises(UsageError, match="is not a network namespace"):
            NetNs.open(wrong)
    with pytest.raises(UsageError, match="cannot be opened"):
        NetNs.open(1 << 22)


def test_a_named_namespace_as_ip_netns_makes_it(
    private_mounts: None, netns: NetNs, outer_netns: NetNs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is a file with the namespace mounted on it, and /proc shows that path, not ``net:[…]``."""
    monkeypatch.setattr("loader.netns.NAMED", tmp_path)
    for name, what in (("blue-1", "/proc/thread-self/ns/net"), ("uts", "/proc/thread-self/ns/uts")):
        (tmp_path / name).touch()
        assert libc().mount(what.encode(), bytes(tmp_path / name), None, 4096, None) == 0  # MS_BIND
    with outer_netns.entered():
        for spec in ("blue-1", tmp_path / "blue-1"):
            with NetNs.open(spec) as named, named.entered():
                assert named.ino == netns.ino
                assert netns.is_current
        with pytest.raises(UsageError, match="uts is not a network namespace"):
            NetNs.open("uts")
    for name in ("blue-1", "uts"):
        assert libc().umount2(bytes(tmp_path / name), 2) == 0  # MNT_DETACH


def test_listeners_are_those_of_the_namespace(netns: NetNs, outer_netns: NetNs) -> None:
    assert listeners() == []
    with (
        socket.create_server(("127.0.0.5", 8080)),
        socket.create_server(("::1", 8080), family=socket.AF_INET6),
    ):
        assert sorted(str(one.address) for one in listeners(8080)) == ["127.0.0.5", "::1"]
        assert listeners(80) == []
        with outer_netns.entered():
            assert "127.0.0.5" not in [str(one.address) for one in listeners(8080)]
    assert listeners(8080) == []


# --- rights -------------------------------------------------------------------------------------------------


def test_a_missing_capability_is_named(run_without: Callable[..., str]) -> None:
    create = (
        "from loader.objects import Map; from pybpfasm.maps import MapSpec, MapType\n"
        "Map.create(MapSpec('m', MapType.HASH, 4, 4, 1))"
    )
    error = run_without("CAP_BPF,CAP_SYS_ADMIN", create)
    assert error.startswith("loader.errors.CapabilityError: BPF_")
    assert error.endswith("this process lacks CAP_BPF")


def test_entering_a_namespace_needs_a_capability(
    netns: NetNs, outer_netns: NetNs, run_without: Callable[..., str]
) -> None:
    enter = (
        "from loader.netns import NetNs\n"
        f"with NetNs.open('/proc/self/fd/{outer_netns.fd}') as ns, ns.entered():\n    pass"
    )
    error = run_without("CAP_SYS_ADMIN", enter, outer_netns.fd)
    assert error.startswith("loader.errors.CapabilityError")
    assert "cannot be entered" in error


def test_mounting_needs_a_capability(run_without: Callable[..., str], tmp_path: Path) -> None:
    mount = f"from pathlib import Path; from loader.bpffs import BpfFs; BpfFs.mount(Path({str(tmp_path)!r}))"
    assert run_without("CAP_SYS_ADMIN", mount).startswith("loader.errors.CapabilityError")
