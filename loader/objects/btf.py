# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""BTF in the kernel."""

from __future__ import annotations

import ctypes
import errno
from typing import NamedTuple

from loader import sys as bpf_sys
from loader.capabilities import explain
from loader.errors import BpfError
from loader.objects.owned import Owned, open_id
from pybpfasm.kernel.enums import Cmd


class BtfInfo(NamedTuple):
    """What the kernel says of a BTF object; ``size`` in bytes."""

    id: int
    name: str
    size: int
    is_kernel: bool


class Btf(Owned):
    """BTF (type information) that the kernel holds."""

    kind = "btf"

    @classmethod
    def load(cls, data: bytes) -> Btf:
        """Load BTF in the kernel's own byte order. An error carries the kernel's log as a note."""
        try:
            return cls(bpf_sys.btf_load(data))
        except BpfError as first:
            if first.errno in (errno.EPERM, errno.EACCES):
                raise explain(first, ("CAP_BPF",)) from None
            if first.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # no fault of the BTF
        try:
            return cls(bpf_sys.btf_load(data, log_size=1 << 20))
        except BpfError as error:
            note = "\n".join(getattr(error, "__notes__", [])).strip()
            reason = note.splitlines()[-1] if note else ""
            raise error.about(
                f"{error.what}{f' ({reason})' if reason else ''}",
                hint="the BTF itself is wrong: this is a defect of the assembler, please report it"
                if error.errno == errno.EINVAL
                else "",
            ) from None

    @classmethod
    def from_id(cls, btf_id: int) -> Btf:
        """Open a BTF object by its id."""
        return cls(open_id(Cmd.BTF_GET_FD_BY_ID, btf_id, cls.kind))

    def info(self) -> BtfInfo:
        """Return id, name and size; before Linux 5.11 there are no names."""
        raw = bpf_sys.BtfInfoStruct()
        name = ctypes.create_string_buffer(128)
        raw.name, raw.name_len = ctypes.addressof(name), len(name)
        try:
            bpf_sys.obj_info(self.fd, raw)
        except BpfError as error:
            if error.errno != errno.E2BIG:
                raise
            raw = bpf_sys.BtfInfoStruct()
            bpf_sys.obj_info(self.fd, raw)
        return BtfInfo(
            int(raw.id), name.value.decode("ascii", "replace"), int(raw.btf_size), bool(raw.kernel_btf)
        )

    def data(self) -> bytes:
        """Return the BTF as bytes: header, types, strings."""
        size = self.info().size
        raw = bpf_sys.BtfInfoStruct()
        buffer = ctypes.create_string_buffer(size)
        raw.btf, raw.btf_size = ctypes.addressof(buffer), size
        bpf_sys.obj_info(self.fd, raw)
        return buffer.raw
