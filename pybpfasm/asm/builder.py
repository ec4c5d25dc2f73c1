# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""`Asm`: the builder that a program's Python function writes its instructions with."""

from __future__ import annotations

from bisect import bisect_left
from enum import IntEnum
from operator import attrgetter
from sys import _getframe
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, overload

from pybpfasm import isa
from pybpfasm.asm.blocks import Chain, ElseBlock, IfBlock, LoopBlock
from pybpfasm.asm.branches import Label
from pybpfasm.asm.conditions import Condition
from pybpfasm.asm.jumps import require_marks, resolve_jumps
from pybpfasm.asm.legacy import LegacyPacket, PacketLoad
from pybpfasm.asm.operands import (
    S32_MAX,
    S32_MIN,
    U32_MAX,
    Address,
    Imm,
    Mem,
    Reg,
    RegValue,
    StoreValue,
    Unary,
    a,
)
from pybpfasm.errors import AsmError, SourceLocation, suggestion
from pybpfasm.instruction import Instruction
from pybpfasm.isa import FRAME_POINTER, LD_IMM64, Alu, CallKind, Imm64
from pybpfasm.kernel.enums import SkAction, TcxAction, XdpAction
from pybpfasm.layout import U8, U16, U32, U64, ArrayView, ByteOrder, Scalar, Struct
from pybpfasm.maps import MapSpec, MapValue
from pybpfasm.source import INTERNAL, RESUMABLE, Origin, capture, capture_at, resolve

if TYPE_CHECKING:
    from pybpfasm.extern import Extern
    from pybpfasm.kernel.enums import Helper
    from pybpfasm.program import Subprogram
    from pybpfasm.target import Target

STACK_LIMIT: Final = 512
_new: Final = Instruction.__new__


_MOV64_X: Final = isa.ALU64 | Alu.MOV | isa.X
_MOV32_X: Final = isa.ALU | Alu.MOV | isa.X
_MOV64_K: Final = isa.ALU64 | Alu.MOV | isa.K
_MOV32_K: Final = isa.ALU | Alu.MOV | isa.K
_LOAD: Final = {size: isa.LDX | isa.MEM | code for size, code in isa.SIZE_CODE.items()}
_LOADSX: Final = {size: isa.LDX | isa.MEMSX | code for size, code in isa.SIZE_CODE.items()}


if TYPE_CHECKING:

    class _Register:
        """``b.r3`` and ``b.r3 = …``."""

        @overload
        def __get__(self, obj: None, owner: type[Asm]) -> _Register: ...
        @overload
        def __get__(self, obj: Asm, owner: type[Asm]) -> Reg: ...
        def __get__(self, obj: Asm | None, owner: type[Asm]) -> _Register | Reg: ...
        def __set__(self, obj: Asm, value: RegValue) -> None: ...


def _register(name: str) -> _Register:
    """The property of `Asm` that is register *name*. (Descriptors in Python are slower.)"""
    dst = int(name[1:])
    is_w = name[0] == "w"
    move, load_imm = (_MOV32_X, _MOV32_K) if is_w else (_MOV64_X, _MOV64_K)

    def write(asm: Asm, value: RegValue) -> None:
        kind = type(value)
        if kind is Reg:
            assert isinstance(value, Reg)
            if value.done and value.index == dst and value.is_w == is_w:
                return  # an in-place operation assigns its result back
            if dst == FRAME_POINTER:
                raise asm._frame_pointer()
            if value.is_w != is_w:
                raise asm._widths_differ(asm._regs[is_w][dst], value)
            if value.asm is not asm:
                raise asm._foreign()
            asm._emit(move, dst, value.index)
            return
        if dst == FRAME_POINTER:
            raise asm._frame_pointer()
        if kind is Mem:
            assert isinstance(value, Mem)
            if value.asm is not asm:
                raise asm._foreign()
            if is_w:
                raise asm._error(f"write b.r{dst}: a load of 1, 2 or 4 bytes clears the rest of the register")
            if value.field is not None:
                asm._not_elsewhere(value)
            asm._emit((_LOADSX if value.is_signed else _LOAD)[value.size], dst, value.base, value.offset)
        elif isinstance(value, (int, Imm)):
            if isinstance(value, Imm) and value.bits == 64:
                asm._wide(dst, is_w, value.resolve(asm.byteorder))
            else:
                asm._emit(load_imm, dst, 0, 0, asm._immediate(value, is_w, "imm64()"))
        else:
            asm._assign_other(dst, is_w, value)

    return property(attrgetter("_" + name), write)  # type: ignore[return-value]


def _target(target: str | Target) -> Target:
    from pybpfasm.target import Target

    return Target.of(target)


class _NoRegister:
    """``b.r11`` and the like."""

    def __get__(self, obj: Asm | None, owner: type[Asm]) -> NoReturn:
        if obj is None:
            raise AttributeError
        raise obj._error("there is no such register: they are r0 to r10 and w0 to w10")

    def __set__(self, obj: Asm, value: object) -> NoReturn:
        raise obj._error("there is no such register: they are r0 to r10 and w0 to w10")


class _Memory:
    """``b.u32[address]``: memory of one size at any address."""

    __slots__ = ("asm", "type")

    def __init__(self, asm: Asm, type: Scalar) -> None:
        self.asm = asm
        self.type = type

    def __getitem__(self, address: Reg | Address) -> Mem:
        if isinstance(address, Reg):
            address = address + 0
        elif not isinstance(address, Address):
            raise self.asm._error("memory is reached through a register: b.u32[b.r1 + 4]")
        return Mem(address.asm, address.base, address.offset, self.type.size, False)

    def __setitem__(self, address: Reg | Address, value: StoreValue) -> None:
        self[address].store(value)


T = TypeVar("T", bound=Struct)

_REGISTERS: Final = tuple(f"_{kind}{index}" for kind in "rw" for index in range(11))


class Asm:
    """Writes the instructions of one function, for a *target*: an ISA level (``"v3"``), a Linux release
    (``"5.15"``), or whatever has all instructions.

    ``b.r0`` to ``b.r10`` and ``b.w0`` to ``b.w10`` are the registers, ``b.u8[…]`` to ``b.u64[…]`` is memory
    at an address. Every mistake is an `AsmError` at the Python line that made it.
    """

    __slots__ = (
        "_body",
        "_caller",
        "_calls",
        "_chain",
        "_code",
        "_context",
        "_depth",
        "_done",
        "_loose",
        "_memory",
        "_named",
        "_only_by_jump",
        "_places",
        "_referring",
        "_regs",
        "_stack",
        "_stack_by_hand",
        "_terminated",
        "_used",
        "_verdicts",
        "_wides",
        "_writer",
        "byteorder",
        "entry",
        "name",
        "target",
        *_REGISTERS,
    )

    r0 = _register("r0")
    r1 = _register("r1")
    r2 = _register("r2")
    r3 = _register("r3")
    r4 = _register("r4")
    r5 = _register("r5")
    r6 = _register("r6")
    r7 = _register("r7")
    r8 = _register("r8")
    r9 = _register("r9")
    r10 = _register("r10")
    w0 = _register("w0")
    w1 = _register("w1")
    w2 = _register("w2")
    w3 = _register("w3")
    w4 = _register("w4")
    w5 = _register("w5")
    w6 = _register("w6")
    w7 = _register("w7")
    w8 = _register("w8")
    w9 = _register("w9")
    w10 = _register("w10")
    if not TYPE_CHECKING:  # a type checker knows by their absence
        # What the four bits of an encoded register could say, but no program may.
        r11 = r12 = r13 = r14 = r15 = w11 = w12 = w13 = w14 = w15 = _NoRegister()

    def __init__(
        self,
        name: str,
        entry: CodeType | None = None,
        byteorder: ByteOrder = "little",
        target: str | Target | None = None,
    ) -> None:
        if byteorder not in ("little", "big"):
            raise AsmError(f"a byte order is 'little' or 'big', not {byteorder!r}", resolve(capture(None, 2)))
        self.name = name
        self.target = None if target is None else _target(target)
        self.byteorder: ByteOrder = byteorder
        self.entry = entry
        self._regs = tuple(tuple(Reg(self, i, w) for i in range(11)) for w in (False, True))
        for name, reg in zip(_REGISTERS, (*self._regs[False], *self._regs[True]), strict=True):
            setattr(self, name, reg)
        self._memory = tuple(_Memory(self, type) for type in (U8(), U16(), U32(), U64()))
        self._done = tuple(tuple(Reg(self, i, w, True) for i in range(11)) for w in (False, True))
        self._body: list[Instruction] = []
        self._referring: list[int] = []  # indices of instructions with a reference
        self._wides: list[int] = []  # indices of those that take two slots
        self._places: dict[Label, int] = {}
        self._used: dict[Label, Origin] = {}
        self._named: dict[str, Label] = {}
        self._only_by_jump: dict[Label, Origin] = {}  # labels after what always leaves
        self._loose: dict[int, Condition | Unary | IfBlock | ElseBlock | LoopBlock] = {}
        self._chain: Chain | None = None
        self._depth = 0
        self._terminated = False
        self._stack = 0
        self._stack_by_hand: list[tuple[int, int, Origin]] = []  # offsets from r10 that were written, sizes
        self._calls: dict[Subprogram, None] = {}  # in the order of the first calls
        self._context: type[Struct] | None = None  # what a program or a global function gets in r1
        self._verdicts: type[IntEnum] | None = None  # of the program that this is the main function of
        # The frame that wrote last, its code, and where it was called.
        self._writer: FrameType | None = None
        self._code: CodeType | None = None
        self._caller: Origin | None = None

    def __repr__(self) -> str:
        return f"<Asm {self.name}, {self.slots} slots>"

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            known = [n for n in dir(type(self)) if not n.startswith("_")]
            raise self._error(f"Asm has no {name!r}{suggestion(name, known)}")

    # Memory.
    @property
    def u8(self) -> _Memory:
        """``b.u8[b.r1 + 4]``: a byte of memory."""
        return self._memory[0]

    @property
    def u16(self) -> _Memory:
        """``b.u16[b.r1 + 4]``: 2 bytes of memory in host order."""
        return self._memory[1]

    @property
    def u32(self) -> _Memory:
        """``b.u32[b.r1 + 4]``: 4 bytes of memory in host order."""
        return self._memory[2]

    @property
    def u64(self) -> _Memory:
        """``b.u64[b.r1 + 8]``: 8 bytes of memory in host order."""
        return self._memory[3]

    @property
    def skb(self) -> LegacyPacket:
        """``b.skb.u16[12]``: the packet, for the loads of classic BPF: see `LegacyPacket`."""
        return LegacyPacket(self)

    def stack(self, struct: type[T]) -> T:
        """A view of fresh stack space for *struct*, 8-byte aligned.

        Raises `AsmError` above 512 bytes in all.
        """
        if not isinstance(struct, type):
            raise self._error(f"stack takes a structure's class, not {a(struct)}")
        return struct(self.stack_bytes(struct.sizeof))

    def stack_bytes(self, size: int) -> Address:
        """The address of *size* fresh bytes of stack, 8-byte aligned.

        Their contents are not set. Raises `AsmError` above 512 bytes in all. What is written by hand,
        ``b.r10 - 8``, must lie below all that a function takes here; `AsmError` where it does not.
        """
        if not isinstance(size, int) or size < 1:
            raise self._error(f"{size!r} bytes of stack can't be had: at least 1")
        taken = self._stack + -(-size // 8) * 8
        if taken > STACK_LIMIT:
            raise self._error(
                f"{size} more bytes of stack make {taken}; a function has {STACK_LIMIT}: "
                "use a map for what is large"
            )
        self._stack = taken
        return Address(self, isa.FRAME_POINTER, -taken)

    # Named macros.
    def lea(self, target: Reg, what: Address | Struct | ArrayView | Mem) -> None:
        """*target* = the address of *what*: a move and an addition (no addition where the offset is 0).

        Raises `AsmError` for a w register, r10, and what is in no memory.
        """
        address = what.address if isinstance(what, (Struct, ArrayView)) else what
        if type(what).__name__ == "Bits":
            raise self._error("a bit field has no address; its bytes have: b.lea(b.rN, view.field.unit)")
        if not isinstance(target, Reg) or not isinstance(address, (Address, Mem)):
            raise self._error(
                f"lea takes a register and what is in memory, not {a(target)} and {a(what)}"
                + (f"; b.{target} = b.{what} copies a register" if type(what).__name__ == "Reg" else "")
            )
        if address.asm is not self:
            raise self._foreign()
        if target.is_w:
            raise self._error(f"{target.name} is 32 bits wide and can't hold an address")
        if target.index == isa.FRAME_POINTER:
            raise self._frame_pointer()
        if target.index != address.base:
            self._emit(isa.ALU64 | Alu.MOV | isa.X, target.index, address.base)
        if address.offset:
            self._emit(
                isa.ALU64 | Alu.ADD | isa.K, target.index, 0, 0, self._immediate(address.offset, False)
            )

    def zero(self, what: Struct | ArrayView, start: int = 0) -> None:
        """Store zeros over *what*, a view of a structure or of an array, from byte *start*.

        These are as few aligned stores as the size allows.

        Raises `AsmError` for what is neither.
        """
        if not isinstance(what, (Struct, ArrayView)):
            raise self._error(f"zero takes a view of a structure or of an array, not {a(what)}")
        address, size = what.address, what.sizeof
        at = start
        while at < size:
            step = next(n for n in (8, 4, 2, 1) if at + n <= size and (address.offset + at) % n == 0)
            self._emit(isa.ST | isa.MEM | isa.SIZE_CODE[step], address.base, 0, address.offset + at, 0)
            at += step

    def ret(self, value: int | Reg) -> None:
        """``r0 = value`` and ``exit``. *value* is a 32-bit constant, sign-extended, or a register.

        Raises `AsmError` for a verdict of another program type.
        """
        verdicts = self._verdicts
        if verdicts and isinstance(value, (SkAction, TcxAction, XdpAction)) and type(value) is not verdicts:
            raise self._error(
                f"{self.name} returns one of {verdicts.__name__}, where {type(value).__name__}.{value.name} "
                f"({int(value)}) means something else"
            )
        if isinstance(value, Reg) and value.is_w:
            self.w0 = value
        else:
            self.r0 = value
        self.exit()

    # Instructions without an operator.
    def exit(self) -> None:
        """Leave the function with r0 as its result (RFC 9669, section 4.3).

        What follows must have a label; anything else raises `AsmError`.
        """
        self._emit(isa.OP_EXIT)
        self._terminated = True

    def call(self, what: Helper | int | Subprogram | Extern) -> None:
        """Call a helper, a subprogram or a function of the kernel (`pybpfasm.extern.kfunc`).

        Arguments are in r1 to r5, the result comes in r0; r1 to r5 are lost. A helper is a `Helper`, or its
        number (``BPF_FUNC_*``, RFC 9669 section 4.3.1). Raises `AsmError` for what can't be called.
        """
        from pybpfasm.program import Subprogram

        if isinstance(what, Subprogram):
            self._calls[what] = None
            self._emit(isa.OP_CALL, 0, CallKind.LOCAL, 0, -1, reference=what)
        elif isinstance(what, int):
            if not 0 <= what <= S32_MAX:
                raise self._error(f"helper {what} does not exist")
            self._emit(isa.OP_CALL, 0, CallKind.HELPER, 0, int(what))
        else:
            from pybpfasm.extern import Extern

            if isinstance(what, Extern) and what.callable:
                self._emit(isa.OP_CALL, 0, CallKind.KFUNC, 0, 0, reference=what)
                return
            hint = ""
            if isinstance(what, str):
                from pybpfasm.kernel.enums import Helper

                hint = suggestion(what.removeprefix("bpf_"), Helper.__members__).replace("'", "")
                hint = hint.replace("did you mean ", "did you mean Helper.")
            elif callable(what):
                hint = "; a plain function is a macro, which Python calls: f(b)"
            raise self._error(f"call takes a Helper or a subprogram, not {a(what)}{hint}")

    def goto(self, label: str | Label) -> None:
        """Jump to *label*, here or further on."""
        self._jump(self._label(label))

    def gotol(self, label: str | Label) -> None:
        """As `goto`, with a distance of 32 bits (ISA v4, Linux 6.6), whether it needs them or not."""
        self._jump(self._label(label), isa.OP_GOTOL)

    def may_goto(self, label: str | Label) -> None:
        """``may_goto label``: go on, and jump to *label* when the function has come to such places too often
        (8 388 608 times, in newer kernels for a quarter of a second; Linux 6.9).

        The verifier takes a loop for one that ends if it holds one: ``b.may_goto(loop.end)``.
        """
        place = self._label(label)
        origin = self._capture(2)
        self._emit(isa.OP_MAY_GOTO, reference=place, origin=origin)
        self._used.setdefault(place, origin)

    def label(self, label: str | Label) -> None:
        """Mark this place as *label*.

        A name may stand for one place in a function; raises `AsmError` for a second.
        """
        found = self._label(label)
        if found in self._places:
            raise self._error(f"label {found.hint!r} marks another place already")
        if self._terminated:
            self._only_by_jump[found] = self._capture(2)
        self._chain = None  # an Else after this would not follow the If
        self._place(found)

    def named(self, name: str) -> Label:
        """The `Label` that *name* stands for in this function, for macros that take one."""
        return self._label(name)

    # Blocks.
    def If(self, condition: Condition) -> IfBlock:
        """``with b.If(cond):`` a block that runs where *condition* holds; ``b.If(cond).goto(label)`` a
        jump.

        Raises `AsmError` for what is no comparison, a Python ``bool`` among them, and, when the function is
        finished, where neither follows.
        """
        return IfBlock(self, condition)

    def Elif(self, condition: Condition) -> ElseBlock:
        """A block, directly after that of an If or Elif, for another condition; raises `AsmError`
        elsewhere."""
        if not isinstance(condition, Condition):
            raise self._error(f"Elif takes a comparison of registers, not {a(condition)}")
        return ElseBlock(self, condition)

    def Else(self) -> ElseBlock:
        """A block, directly after that of an If or Elif, for the remaining cases; raises `AsmError`
        elsewhere."""
        return ElseBlock(self, None)

    def Loop(self) -> LoopBlock:
        """``with b.Loop() as loop:`` repeats until a jump leaves it: ``loop.leave()``,
        ``b.If(cond).goto(loop.end)``."""
        return LoopBlock(self, None)

    def While(self, condition: Condition) -> LoopBlock:
        """``with b.While(cond):`` tests at the top and repeats the block.

        The verifier must see that it ends: it follows every turn, a million instructions in all. Raises
        `AsmError` for what is no comparison.
        """
        if not isinstance(condition, Condition):
            raise self._error(f"While takes a comparison of registers, not {a(condition)}")
        return LoopBlock(self, condition)

    # Below: how it is done.
    def _by_hand(self, offset: int, size: int = 1) -> None:
        """Keep in mind that *size* bytes at r10 plus *offset* are named by a number."""
        if -STACK_LIMIT <= offset < 0:
            self._stack_by_hand.append((offset, size, self._capture(2)))

    def _view_at(self, address: Address, size: int) -> None:
        """Keep in mind a view that begins below what the function has taken so far."""
        if address.base == isa.FRAME_POINTER and address.offset < -self._stack:
            self._by_hand(address.offset, size)

    def here(self) -> SourceLocation:
        """The Python line that is being executed, as messages show it."""
        return resolve(capture(self.entry, 2))

    def _error(self, message: str) -> AsmError:
        return AsmError(message, resolve(capture(self.entry, 2)))

    def _capture(self, depth: int) -> Origin:
        """The origin of the statement being executed *depth* frames above."""
        frame: FrameType | None = _getframe(depth)
        while frame is not self._writer:
            if frame.f_code.co_filename not in INTERNAL:  # type: ignore[union-attr]
                return self._look(frame)
            frame = frame.f_back  # type: ignore[union-attr]
        return (self._code, frame.f_lasti, self._caller)  # type: ignore[return-value,union-attr]

    def _look(self, frame: FrameType | None) -> Origin:
        """The origin of what *frame* executes.

        While a function runs its callers stay where they are, so they are remembered with it; those of a
        generator do not. The frame is held, or another one could come to lie at its address.
        """
        origin = capture_at(frame, self.entry)
        assert frame is not None
        if not frame.f_code.co_flags & RESUMABLE:
            self._writer = frame
            self._code, _, self._caller = origin
        return origin

    def _release(self) -> None:
        """Let go of the instructions. The assembler and its registers refer to each other, so what it holds
        stays until the garbage collector comes by."""
        self._body, self._wides, self._referring = [], [], []

    def _forget(self) -> None:
        """Let go of the frame that wrote last."""
        self._writer = self._code = self._caller = None

    def _emit(
        self,
        opcode: int,
        dst: int = 0,
        src: int = 0,
        offset: int = 0,
        imm: int = 0,
        imm_high: int = 0,
        reference: object = None,
        origin: Origin | None = None,
    ) -> None:
        where: Origin
        if origin is not None:
            where = origin
        else:
            # As _capture() does, without the call: this is the hot path.
            frame: FrameType | None = _getframe(2)
            writer = self._writer
            while frame is not writer:
                if frame.f_code.co_filename not in INTERNAL:  # type: ignore[union-attr]
                    where = self._look(frame)
                    break
                frame = frame.f_back  # type: ignore[union-attr]
            else:
                where = (self._code, frame.f_lasti, self._caller)  # type: ignore[assignment,union-attr]
        if offset and not -32768 <= offset <= 32767:
            raise AsmError(
                f"offset {offset} does not fit the 16 bits that an instruction has for it", resolve(where)
            )
        if self._terminated:
            raise self._unreachable(where)
        if reference is not None:
            self._referring.append(len(self._body))
        if opcode == LD_IMM64:
            self._wides.append(len(self._body))
        # What Instruction() does, in two thirds of the time.
        insn = _new(Instruction)
        insn.opcode = opcode
        insn.dst = dst
        insn.src = src
        insn.offset = offset
        insn.imm = imm
        insn.imm_high = imm_high
        insn.reference = reference
        insn.origin = where
        self._body.append(insn)

    def _not_elsewhere(self, mem: Mem) -> None:
        """Refuse a field of the context at a register that has become something else on the only way here.

        The verifier does not: what lies at a map (its `struct bpf_map`) or in a map's value may be read.
        """
        field, base = mem.field, mem.base
        if self._context is None or field is None or getattr(self._context, field.name, None) is not field:
            return
        for index in range(len(self._body) - 1, max(-1, len(self._body) - 64), -1):
            insn = self._body[index]
            kind = insn.opcode & 7
            if insn.opcode == isa.OP_CALL and base < 6:
                return  # which another check knows
            if insn.dst != base or kind in (isa.ST, isa.STX, isa.JMP, isa.JMP32):
                continue
            if insn.opcode != LD_IMM64 or any(place > index for place in self._places.values()):
                return
            what = insn.reference
            became = f"map {what.name!r}" if isinstance(what, MapSpec) else "something else"
            since = "" if insn.origin is None else f" since {resolve(insn.origin)}"
            raise self._error(
                f"{mem.name} is read or written at r{base}, which is {became}{since}: "
                f"keep the context, b.r6 = ctx, and write {self._context.__name__}(b.r6)"
            )

    def _foreign(self) -> AsmError:
        return self._error(
            f"this belongs to another function than {self.name}: "
            "registers and views are used in the function that they were made for"
        )

    def _unreachable(self, origin: Origin) -> AsmError:
        return AsmError(
            "this can't be reached: the statement before always leaves "
            "(put a label here if something jumps to it)",
            resolve(origin),
        )

    def _begin(self, block: IfBlock | ElseBlock | LoopBlock, what: str) -> None:
        """Take *block* for written; one can be written only once, because its labels mark one place."""
        if self._loose.pop(id(block), None) is None:
            raise self._error(f"this {what} has been written already: each place needs one of its own")

    def _frame_pointer(self) -> AsmError:
        return AsmError("r10 is the frame pointer and can't be changed", resolve(capture(self.entry, 2)))

    def _widths_differ(self, left: Reg, right: Reg) -> AsmError:
        r, w = (right, left) if left.is_w else (left, right)
        return self._error(
            f"{left.name} and {right.name} differ in width: "
            f"write {r.name} and r{w.index} for 64 bits, or w{r.index} and {w.name} for 32"
        )

    def _immediate(self, value: int | Imm, is_w: bool, hint: str = "a register loaded with imm64()") -> int:
        if type(value) is int and 0 <= value <= S32_MAX:
            return value
        number = value.resolve(self.byteorder) if isinstance(value, Imm) else int(value)
        if isinstance(value, Imm) and value.bits == 64:
            raise self._error("a 64-bit constant is no operand: load it to a register first")
        if is_w:
            if not S32_MIN <= number <= U32_MAX:
                raise self._error(f"{number} does not fit 32 bits")
            return number - (1 << 32) if number > S32_MAX else number
        if not S32_MIN <= number <= S32_MAX:
            raise self._error(
                f"{number:#x} does not fit the signed 32-bit immediate, which is sign-extended to 64 bits: "
                f"use {hint}" + (", or the w register" if 0 <= number <= U32_MAX else "")
            )
        return number

    def _wide(self, dst: int, is_w: bool, number: int, reference: object = None) -> None:
        if is_w:
            raise self._error(f"a 64-bit constant needs all of the register: write b.r{dst}")
        low, high = number & U32_MAX, number >> 32
        signed = [n - (1 << 32) if n > S32_MAX else n for n in (low, high)]
        self._emit(isa.LD_IMM64, dst, Imm64.VALUE, 0, signed[0], signed[1], reference)

    def _assign_other(self, dst: int, is_w: bool, value: object) -> None:
        from pybpfasm.asm.bits import Bits
        from pybpfasm.program import Subprogram

        if isinstance(value, Unary):
            self._unary(dst, is_w, value)
        elif isinstance(value, Struct):
            address = value.address
            if address.offset:
                raise self._error("the address of that takes two instructions: b.lea(b.rN, …)")
            if is_w:
                raise self._error(f"an address needs all of the register: write b.r{dst}")
            self._emit(isa.ALU64 | Alu.MOV | isa.X, dst, address.base)
        elif isinstance(value, (MapSpec, MapValue, Subprogram)):
            if is_w:
                raise self._error(f"an address needs all of the register: write b.r{dst}")
            if isinstance(value, MapSpec):
                self._emit(isa.LD_IMM64, dst, Imm64.MAP_FD, reference=value)
            elif isinstance(value, MapValue):
                self._emit(isa.LD_IMM64, dst, Imm64.MAP_VALUE, imm_high=value.offset, reference=value.map)
            else:
                self._calls[value] = None
                self._emit(isa.LD_IMM64, dst, Imm64.FUNC, imm=-1, reference=value)
        elif isinstance(value, Address):
            raise self._error(
                "an address and its offset take two instructions: b.lea(b.rN, …), or move and add"
            )
        elif isinstance(value, Condition):
            self._loose.pop(id(value), None)
            raise self._error(
                "a comparison has no value to assign: use b.If(…); to mask bits write b.rN &= x"
            )
        elif isinstance(value, PacketLoad):
            if dst or is_w:
                raise self._error("a load from the packet goes to r0: b.r0 = …")
            if value.asm is not self:
                raise self._foreign()
            mode, base = (isa.ABS, 0) if value.base is None else (isa.IND, value.base)
            self._emit(isa.LD | mode | isa.SIZE_CODE[value.size], 0, base, 0, value.offset)
        elif isinstance(value, Bits):
            raise self._error(
                f"loading a bit field takes several instructions: view.{value.field.name}.load(b.r{dst})"
            )
        else:
            raise self._error(f"a register can't be set to {a(value)}")

    def _unary(self, dst: int, is_w: bool, value: Unary) -> None:
        reg = value.reg
        self._loose.pop(id(value), None)
        if value.kind == "movsx":
            if reg.is_w != is_w:
                raise self._widths_differ(self._regs[is_w][dst], reg)
            if is_w and value.width == 32:
                raise self._error("a 32-bit register has no bits left to extend into")
            self._emit((isa.ALU if is_w else isa.ALU64) | Alu.MOV | isa.X, dst, reg.index, value.width)
            return
        if value.kind == "cast":
            if is_w or reg.is_w:
                raise self._error(f"a pointer takes all of the register: write b.r{dst} and b.r{reg.index}")
            opcode = isa.ALU64 | Alu.MOV | isa.X
            self._emit(opcode, dst, reg.index, 1, value.width)
            return
        if reg.index != dst or reg.is_w != is_w:
            word = "negation" if value.kind == "neg" else "byte swap"
            raise self._error(f"a {word} works in place: write b.{reg.name} = … b.{reg.name}")
        if value.kind == "neg":
            self._emit((isa.ALU if is_w else isa.ALU64) | Alu.NEG | isa.K, dst)
            return
        if is_w:
            raise self._error(f"a byte swap clears the bits above its width: write b.r{dst}")
        opcode = {"le": isa.ALU | isa.K, "be": isa.ALU | isa.X, "bswap": isa.ALU64 | isa.K}[value.kind]
        self._emit(opcode | Alu.END, dst, 0, 0, value.width)

    def _label(self, label: str | Label) -> Label:
        if isinstance(label, Label):
            return label
        if not isinstance(label, str):
            raise self._error(f"a label is a name or a Label, not {a(label)}")
        if label not in self._named:
            self._named[label] = Label(label)
        return self._named[label]

    def _place(self, label: Label) -> None:
        self._places[label] = len(self._body)
        self._terminated = False

    def _unplace(self, label: Label) -> None:
        self._places.pop(label, None)

    def _jump(self, label: Label, opcode: int = isa.OP_JA) -> None:
        origin = capture(self.entry, 2)
        self._emit(opcode, reference=label, origin=origin)
        self._used.setdefault(label, origin)
        self._terminated = True

    def finish(self) -> list[Instruction]:
        """The instructions, jumps resolved; references to maps and subprograms stay.

        What ``target`` lacks has been rewritten where `pybpfasm.asm.rewrite` can. Raises `AsmError` where it
        can't, for a label that nothing marks, a comparison that nothing uses, an empty function
        and a way past its end.
        """
        self._forget()
        for loose in self._loose.values():
            what = "If(…) is neither a `with` block nor followed by .goto()"
            if isinstance(loose, Condition):
                what = "this comparison does nothing: it belongs in b.If(…)"
            elif isinstance(loose, Unary):
                what = f"this does nothing: its result must be assigned, b.{loose.reg.name} = …"
            elif not isinstance(loose, IfBlock):
                what = f"{loose.what}(…) does nothing without `with`"
            raise AsmError(what, resolve(loose.origin))
        if not self._body:
            raise AsmError(f"{self.name} has no instructions")
        taken = self._stack
        for offset, size, written in self._stack_by_hand:
            if taken and offset + size > -taken:
                raise AsmError(
                    f"r10{offset:+d} is in the {taken} bytes below r10 that b.stack() and b.stack_bytes() "
                    "gave out: take these from b.stack_bytes() too",
                    resolve(written),
                )
        require_marks(self)
        at_end = any(
            place == len(self._body) and label in self._used for label, place in self._places.items()
        )
        if at_end or not self._terminated:
            origin = self._body[-1].origin
            raise AsmError(
                f"{self.name} runs past its end after this statement: it needs b.exit() or b.ret()",
                None if origin is None else resolve(origin),
            )
        if self._only_by_jump:
            jumped_to = {self._places[label] for label in self._used if label in self._places}
            for dead, origin in self._only_by_jump.items():
                if self._places[dead] not in jumped_to and self._places[dead] < len(self._body):
                    raise AsmError(
                        f"what follows label {dead.hint!r} can't be reached: nothing jumps to it, "
                        "and the statement before always leaves",
                        resolve(origin),
                    )
        if self.target is not None:
            from pybpfasm.asm.rewrite import rewrite

            rewrite(self, self.target)
        return resolve_jumps(self)

    def _slot(self, index: int) -> int:
        """The slot of the instruction at *index*: those before it, and the wide ones among them once more."""
        return index + bisect_left(self._wides, index)

    @property
    def slots(self) -> int:
        """How many 8-byte slots have been written so far."""
        return self._slot(len(self._body))

    def labels(self) -> dict[int, str]:
        """Names given to places, by index of the instruction that follows."""
        return {self._places[label]: name for name, label in self._named.items() if label in self._places}
