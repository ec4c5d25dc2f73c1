# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Functions that programs call, and how the Python function of one is run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from pybpfasm.asm import Asm
from pybpfasm.errors import AsmError, LayoutError
from pybpfasm.layout import ByteOrder, Struct
from pybpfasm.source import CO_GENERATOR, RESUMABLE, capture, forget, raised_at, resolve

if TYPE_CHECKING:
    from pybpfasm.target import Target

__all__ = ["Subprogram", "check_function", "global_function", "subprogram", "writing"]


@contextmanager
def writing(b: Asm) -> Iterator[None]:
    """Run a program's Python function: a misspelt register is an error of its line like all others.

    The garbage collector pauses: it would look through all instructions again and again, and find nothing.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except LayoutError as error:
        raise AsmError(str(error), raised_at(error, b.entry)) from None
    except AttributeError as error:
        words = str(error)
        if "'Asm' object" not in words:
            raise
        message = words.replace("'Asm' object", "the assembler")
        if "has no setter" in words:
            message = (
                f"b.{words.split(chr(39))[1]} can't be assigned to: memory is written as b.u32[b.r1] = …"
            )
        raise AsmError(message, raised_at(error, b.entry)) from None
    finally:
        if collects:
            gc.enable()
        forget()
        b._forget()


class Subprogram:
    """A function that programs call (``b.call(f)``) or pass as a callback (``b.r2 = f``).

    Its code is written once in each program that names it. `bind` gives it the settings that its Python
    function takes.
    """

    __slots__ = ("_arguments", "_function", "_settings", "context", "name", "pointers")

    def __init__(
        self,
        function: Callable[..., None],
        arguments: tuple[str, ...],
        settings: tuple[object, ...] = (),
        context: type[Struct] | None = None,
        pointers: Mapping[str, type[Struct]] = MappingProxyType({}),
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._settings = settings
        self.context = context
        self.pointers = pointers
        self.name = function.__name__

    def bind(self, *settings: object) -> Subprogram:
        """The same subprogram with *settings* for the parameters of its Python function after the first."""
        return Subprogram(self._function, self._arguments, settings, self.context, self.pointers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subprogram):
            return NotImplemented
        return self._function is other._function and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return f"<subprogram {self.name}>"

    def write(self, byteorder: ByteOrder, target: Target | None = None) -> Asm:
        """The subprogram's own instructions, for the *target* of the program that names it."""
        b = Asm(self.name, self._function.__code__, byteorder, target)
        b._context = self.context
        with writing(b):
            self._function(b, *self._settings)
        return b

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments, which come in r1 and up."""
        return self._arguments


def check_function(function: object, what: str) -> None:
    code = getattr(function, "__code__", None)
    name = type(function).__name__
    if code is not None and code.co_flags & RESUMABLE:
        name = "a generator" if code.co_flags & CO_GENERATOR else "a coroutine"
        code = None
    if code is None:
        raise AsmError(f"{what} is a plain function, not {name}", resolve(capture(None, 3)))


def subprogram(*arguments: str) -> Callable[[Callable[..., None]], Subprogram]:
    """Declare a subprogram whose *arguments*, at most five, come in r1 and up::

    @subprogram("data", "length")
    def sum_bytes(b: Asm) -> None: ...

    Raises `AsmError` for more arguments, and for what is no plain function.
    """
    if len(arguments) > 5:
        raise AsmError(
            f"a subprogram takes at most 5 arguments, in r1 to r5; got {len(arguments)}",
            resolve(capture(None, 2)),
        )
    if not all(isinstance(argument, str) for argument in arguments):
        raise AsmError(
            'a subprogram names its arguments: @subprogram("data", "length"), or @subprogram()',
            resolve(capture(None, 2)),
        )

    def wrap(function: Callable[..., None]) -> Subprogram:
        check_function(function, "a subprogram")
        return Subprogram(function, arguments)

    return wrap


def global_function(
    context: type[Struct], *arguments: str, **pointers: type[Struct]
) -> Callable[[Callable[..., None]], Subprogram]:
    """Declare a subprogram that the verifier checks once, by itself, and not anew for every call (Linux 5.6).

    It takes the program's context, of type *context*, in r1, and in r2 and up at most four arguments: first
    integers, of which nothing is known inside, then *pointers* to structures by their names (Linux 5.13)::

    @global_function(SkBuff, "length", event=Event)  # r1, r2, r3
    def report(b: Asm) -> None: ...

    The caller passes memory of at least the structure's size, or 0: inside, compare the register with 0
    before it is used. Of the result the caller knows nothing. So there are fewer states to follow.

    Raises `AsmError` for more arguments, a context or a pointer that is to no structure, an argument named
    twice, and what is no plain function.
    """
    given: object = context
    if not (isinstance(given, type) and issubclass(given, Struct)):
        shown = repr(given) if isinstance(given, str) else type(given).__name__
        raise AsmError(
            f"a global function takes the program's context first, such as SkBuff, not {shown}: "
            'what takes only numbers takes it too, @global_function(SkBuff, "number")',
            resolve(capture(None, 2)),
        )
    if not all(isinstance(argument, str) for argument in arguments):
        raise AsmError(
            'a global function names its numbers: @global_function(SkBuff, "length")',
            resolve(capture(None, 2)),
        )
    for name, struct in pointers.items():
        shape: object = struct
        if not (isinstance(shape, type) and issubclass(shape, Struct) and shape.sizeof):
            raise AsmError(
                f"a global function takes pointers to structures: {name}= a class with fields, not {shape!r}",
                resolve(capture(None, 2)),
            )
        if name in arguments:
            raise AsmError(f"two arguments have the name {name!r}", resolve(capture(None, 2)))
    names = (*arguments, *pointers)
    if len(names) > 4:
        raise AsmError(
            f"a global function takes at most 4 arguments beside its context; got {len(names)}",
            resolve(capture(None, 2)),
        )

    def wrap(function: Callable[..., None]) -> Subprogram:
        check_function(function, "a global function")
        return Subprogram(function, names, context=context, pointers=MappingProxyType(pointers))

    return wrap
