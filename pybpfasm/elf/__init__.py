# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""ELF objects: `write_object` makes what libbpf, bpftool and other loaders take, `read_object` reads what
clang and `write_object` made.

    data = write_object([tc_ingress.build(settings), tc_egress.build(settings)])
    programs = read_object(Path("proxy.o").read_bytes()).programs

The conventions followed (section names, map definitions, the meaning of relocations) are libbpf's; the ELF
relocation types are those of the kernel's Documentation/bpf/llvm_reloc.rst.
"""

from pybpfasm.elf.format import ElfError, section_of, type_of_section
from pybpfasm.elf.linker import link_objects
from pybpfasm.elf.object import ObjectFile, ObjectMap, ObjectProgram, read_object
from pybpfasm.elf.writer import write_object

__all__ = [
    "ElfError",
    "ObjectFile",
    "ObjectMap",
    "ObjectProgram",
    "link_objects",
    "read_object",
    "section_of",
    "type_of_section",
    "write_object",
]
