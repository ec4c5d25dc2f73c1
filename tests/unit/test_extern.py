# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Functions and variables of the kernel: their declarations, and how objects name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pybpfasm.asm import Asm
from pybpfasm.btf import Btf, BtfBuilder, BtfError, Kind, declare
from pybpfasm.core import CoreError, CoreResolver
from pybpfasm.elf import ElfError, read_object, write_object
from pybpfasm.elf.reader import RawObject, read_raw
from pybpfasm.errors import AsmError
from pybpfasm.extern import Extern, extern_address, kfunc, ksym
from pybpfasm.instruction import encode
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.kfuncs import KFUNCS
from pybpfasm.program import sched_cls
from pybpfasm.text import assemble

DATA = Path(__file__).parent.parent / "data" / "elf"


def _again(declaration: str) -> str:
    """A declaration as the BTF that was made of it says it in C."""
    builder = BtfBuilder()
    name, type_id = declare(builder, declaration)
    btf = Btf.parse(builder.to_bytes())
    btf.validate()
    return btf.declaration(btf.type(type_id).type_id, name)


@pytest.mark.parametrize("name", KFUNCS)
def test_a_declaration_means_what_it_says(name: str) -> None:
    text = KFUNCS[name]
    # The names of these integers are C's own.
    assert _again(text).replace("_Bool", "bool") == text


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("struct rq runqueues", "struct rq runqueues"),
        ("extern const int x;", "const int x"),
        ("void link_fops", "void link_fops"),
        ("int f()", "int f(void)"),
        ("unsigned long  f ( unsigned long long a , ... )", "unsigned long f(unsigned long long a, ...)"),
        ("union u **f(enum e, const char *const)", "union u **f(enum e, const char *const)"),
        ("int f(bool (*less)(struct a *, const struct a *), u64)", None),
        ("s16 f(__be32 a, uint8_t b, size_t c)", "s16 f(__be32 a, uint8_t b, size_t c)"),
    ],
)
def test_declarations(given: str, meant: str | None) -> None:
    again = _again(given)
    assert again.replace("_Bool", "bool") == (meant or given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a type is missing before 'the end'"),
        ("int", "'a word' is missing before 'the end'"),
        ("foo_t f(int x)", "the type 'foo_t' is not known; write struct foo_t for a structure"),
        ("int f(void x)", "a parameter can't be void"),
        ("int f(int x", r"'\)' is missing before 'the end'"),
        ("int f(int x) int", "'int' after its end"),
        ("int f(int x[4])", r"'x?\[4\]\)' is nothing that a declaration has"),
        ("struct f(int x)", "'f'|a name is missing"),
        (
            "int f(int (*g)(int (*)(int (*)(int (*)(int (*)(int (*)(int (*)(int (*)(int (*)(int))))))))))",
            "deep",
        ),
        ("int f(" + "int, " * 2000 + "int)", "4096 are the most"),
    ],
)
def test_what_is_no_declaration(text: str, message: str) -> None:
    with pytest.raises(BtfError, match=message):
        declare(BtfBuilder(), text)
    if "(" in text:
        with pytest.raises(AsmError, match=message) as caught:
            kfunc(text)
        assert caught.value.location is not None and caught.value.location.filename.endswith("test_extern.py")


def _undefined(raw: RawObject) -> set[tuple[str, int, int]]:
    return {(s.name, s.bind, s.type) for s in raw.symbols if s.section == 0 and s.name}


def _relocations(raw: RawObject, section: str) -> list[tuple[int, int, str]]:
    found = raw.by_name(section)
    assert found is not None
    return [(r.offset, r.type, r.symbol.name) for r in found.relocations]


def _listed(data: bytes) -> dict[str, tuple[str, int, int, int]]:
    """What the section of externs says: linkage, offset, size and C of each."""
    btf = read_object(data).btf
    assert btf is not None
    section = btf.by_name(".ksyms", Kind.DATASEC)
    assert section is not None and section.size == 0
    found = {}
    for entry in section.entries:
        t = btf.type(entry.type_id)
        found[t.name] = (btf.declaration(t.type_id, t.name), t.linkage, entry.offset, entry.size)
    return found


@pytest.mark.parametrize("level", [1, 2, 3])
def test_what_clang_names_of_the_kernel_is_written_as_clang_writes_it(level: int) -> None:
    theirs = (DATA / f"externs_v{level}.o").read_bytes()
    ours = write_object(list(read_object(theirs).programs.values()))
    one, other = read_raw(theirs), read_raw(ours)
    assert _undefined(one) == _undefined(other) and len(_undefined(one)) == 8
    assert _relocations(one, "tc") == _relocations(other, "tc")
    code = one.by_name("tc"), other.by_name("tc")
    assert code[0] is not None and code[1] is not None and code[0].data == code[1].data
    assert _listed(theirs) == _listed(ours)


@sched_cls()
def known(b: Asm, ctx: SkBuff) -> None:
    """Calls a function that pybpfasm knows, one with a declaration, and asks for what there may not be."""
    b.r6 = ctx
    b.r1 = b.r6
    b.r2 = 0
    b.r3 = b.r10
    b.r3 += -16
    b.call(kfunc("bpf_dynptr_from_skb"))
    b.r1 = 1
    b.call(kfunc("int bpf_newer(u32 flags)"))
    extern_address(b.r1, kfunc("bpf_dynptr_from_skb", weak=True))
    extern_address(b.r2, ksym("struct rq runqueues", weak=True))
    extern_address(b.r3, ksym("void bpf_link_fops"))
    b.ret(0)


def test_the_kernels_functions_and_variables_in_an_object() -> None:
    data = write_object([known.build()])
    assert write_object([known.build()]) == data
    assert _listed(data) == {
        "bpf_dynptr_from_skb": (KFUNCS["bpf_dynptr_from_skb"], 2, 0, 0),
        "bpf_newer": ("int bpf_newer(u32 flags)", 2, 0, 0),
        "runqueues": ("struct rq runqueues", 2, 0, 0),
        "bpf_link_fops": ("void bpf_link_fops", 2, 0, 1),
    }
    # One that is weak in one place and not in another has to be there.
    assert _undefined(read_raw(data)) == {
        ("bpf_dynptr_from_skb", 1, 0),
        ("bpf_newer", 1, 0),
        ("runqueues", 2, 0),
        ("bpf_link_fops", 1, 0),
    }
    again = read_object(data).program("known")
    assert again.unresolved == (
        Extern("bpf_dynptr_from_skb", "kfunc"),
        Extern("bpf_newer", "kfunc"),
        Extern("bpf_dynptr_from_skb", "kfunc"),
        Extern("runqueues", "ksym", weak=True),
        Extern("bpf_link_fops", "ksym"),
    )
    assert write_object([again]) == data


def test_a_function_without_a_declaration_is_no_part_of_an_object() -> None:
    @sched_cls()
    def newer(b: Asm, ctx: SkBuff) -> None:
        b.call(kfunc("bpf_newer"))
        b.ret(0)

    with pytest.raises(ElfError, match=r'bpf_newer .* write it out, kfunc\("int bpf_newer\('):
        write_object([newer.build()])


def _kernel(*declarations: str) -> Btf:
    """The BTF of a kernel that has these."""
    builder = BtfBuilder()
    for text in declarations:
        declare(builder, text)
    return Btf.parse(builder.to_bytes())


def test_what_the_kernel_has_of_another_type_is_refused() -> None:
    spec = known.build()
    common = [KFUNCS["bpf_dynptr_from_skb"], "struct rq runqueues"]
    symbols = {"bpf_link_fops": 0xFFFF_FFFF_8123_4567}.get
    target = _kernel(*common, "long bpf_newer(s64 flags)")  # integers of any size are compatible
    done = spec.resolve(CoreResolver(target, symbols))
    wide = [insn for insn in done.instructions if insn.wide]
    assert [(insn.src, insn.imm64) for insn in wide[-1:]] == [(0, 0xFFFF_FFFF_8123_4567)]
    assert [target.type(insn.imm).name for insn in wide[:-1]] == ["bpf_dynptr_from_skb", "runqueues"]

    target = _kernel(*common, "int bpf_newer(struct sock *sk, u32 flags)")
    message = (
        r"declares .*function bpf_newer as int \(u32 flags\); this kernel has int \(struct sock \*sk, u32"
    )
    with pytest.raises(CoreError, match=message):
        spec.resolve(CoreResolver(target, symbols))
    target = _kernel(KFUNCS["bpf_dynptr_from_skb"], "int runqueues", "int bpf_newer(u32 flags)")
    with pytest.raises(CoreError, match="variable runqueues as struct rq; this kernel has int"):
        spec.resolve(CoreResolver(target, symbols))
    target = _kernel(KFUNCS["bpf_dynptr_from_skb"], "int bpf_newer(u32 flags)")
    assert [insn.imm64 for insn in spec.resolve(CoreResolver(target, symbols)).instructions if insn.wide][
        1
    ] == 0
    with pytest.raises(CoreError, match="symbol bpf_link_fops, which it does not have"):
        spec.resolve(CoreResolver(target, lambda name: None))
    with pytest.raises(CoreError, match="address of bpf_link_fops, which only the running kernel knows"):
        spec.resolve(target)


def test_a_weak_function_of_another_type_is_missing() -> None:
    declared = kfunc("int bpf_newer(u32 flags)", weak=True)

    @sched_cls()
    def asks(b: Asm, ctx: SkBuff) -> None:
        extern_address(b.r1, declared)
        with b.If(b.r1 != 0):
            b.r1 = 1
            b.call(declared)
        b.ret(0)

    spec = asks.build().resolve(_kernel("int bpf_newer(void)"))
    assert (spec.instructions[0].src, spec.instructions[0].imm64) == (0, 0)
    assert (spec.instructions[3].src, spec.instructions[3].imm) == (0, 0xBAD2310)


def test_the_kernels_functions_in_text() -> None:
    spec = known.build()
    shown = spec.listing(lines=False)
    assert "call kernel-function[bpf_newer]" in shown and "r2 = btf_id[runqueues]" in shown
    again = assemble(shown)
    assert encode(again) == encode(spec.instructions)
    assert [getattr(i.reference, "name", None) for i in again] == [
        getattr(i.reference, "name", None) for i in spec.instructions
    ]
    (call,) = assemble("call bpf_rcu_read_lock")
    assert (call.src, call.reference) == (2, Extern("bpf_rcu_read_lock", "kfunc"))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("extern_address(b.w1, ksym('int x'))", "write b.r1: an address has 8 bytes"),
        ("extern_address(b.r10, ksym('int x'))", "r10"),
        ("extern_address(b.r1, 'x')", r'statement>:1: extern_address takes kfunc\("…"\), '),
        ("ksym('int f(void)')", "does not declare a variable"),
        ("kfunc('int f(int x')", "missing before 'the end'"),
        ("b.call(ksym('int x'))", "call takes a Helper or a subprogram"),
    ],
)
def test_misuse(statement: str, message: str) -> None:
    b = Asm("misuse")
    names = {"b": b, "ksym": ksym, "kfunc": kfunc, "extern_address": extern_address}
    with pytest.raises(AsmError, match=message):
        exec(compile(statement, "<statement>", "exec"), names)
