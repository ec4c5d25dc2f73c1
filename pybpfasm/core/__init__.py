# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""CO-RE: facts about types that differ from kernel to kernel, filled in from a kernel's BTF at load.

A `CoreRelocation` says what an instruction's number stands for: the offset of a field, the size of a type,
the value of an enumerator, in terms of a *local* type that a compiler or a person has written down. A
`CoreResolver` finds the type of that name in the *target* BTF and works the number out.

Rules and numbers are those of libbpf and the kernel (``enum bpf_core_relo_kind`` in linux/bpf.h): types match
by name, where anything from three underscores on (``task_struct___old``) is left out of account;
fields match by name and kind, through anonymous members; integers of any size are compatible.
"""

from pybpfasm.core.matching import same_declaration
from pybpfasm.core.relocation import CoreError, CoreKind, CoreRelocation, essential
from pybpfasm.core.resolver import POISON, CoreResolver
from pybpfasm.core.statements import (
    core_add_offset,
    core_enum_exists,
    core_enum_value,
    core_exists,
    core_load,
    core_load_bits,
    core_offset,
    core_size,
    core_type_id,
)

__all__ = [
    "POISON",
    "CoreError",
    "CoreKind",
    "CoreRelocation",
    "CoreResolver",
    "core_add_offset",
    "core_enum_exists",
    "core_enum_value",
    "core_exists",
    "core_load",
    "core_load_bits",
    "core_offset",
    "core_size",
    "core_type_id",
    "essential",
    "same_declaration",
]
