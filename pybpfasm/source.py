# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Which Python line wrote an instruction.

Capturing must be cheap, because it happens for every instruction: an `Origin` is a code object and a bytecode
offset, and lines and texts are looked up only when somebody asks.
"""

from __future__ import annotations

import bisect
import dis
import linecache
import os
import sys
from functools import lru_cache
from types import CodeType, FrameType

from pybpfasm.errors import SourceLocation

# Code, bytecode offset, and the origin of the call where the code is a macro's.
Origin = tuple[CodeType, int, "Origin | None"]

_HERE = os.path.dirname(__file__)
# Frames of these files are the assembler's own, never the writer's.
INTERNAL = frozenset(
    os.path.join(_HERE, *name.split("/"))
    for name in (
        "asm/bits.py",
        "asm/blocks.py",
        "asm/branches.py",
        "asm/builder.py",
        "asm/conditions.py",
        "asm/conversions.py",
        "asm/jumps.py",
        "asm/legacy.py",
        "asm/operands.py",
        "asm/rewrite.py",
        "asm/splice.py",
        "bitfield.py",
        "core/statements.py",
        "extern.py",
        "layout.py",
        "maps.py",
        "program/functions.py",
        "program/template.py",
    )
)
known_modules: dict[str, str] = {}
# Of the flags of code in inspect, which takes long to import: CO_GENERATOR, with CO_COROUTINE and
# CO_ASYNC_GENERATOR those whose frames can be left and resumed.
CO_GENERATOR = 0x20
RESUMABLE = CO_GENERATOR | 0x80 | 0x200


# The chain of callers found last, by the frame that it begins at: a macro writes several instructions in a
# row. The frame is held, or another one could come to lie at its address.
_last_callers: tuple[FrameType | None, int, CodeType | None, Origin | None] = (None, 0, None, None)


def _module(frame: FrameType) -> str:
    """The name of the module that *frame* runs in; of ``python -m name`` that name."""
    name: str = frame.f_globals.get("__name__", "")
    spec = frame.f_globals.get("__spec__") if name == "__main__" else None
    return name if spec is None else spec.name


def capture(entry: CodeType | None, depth: int = 2) -> Origin:
    """The origin of the statement being executed *depth* frames above, up to the function *entry*."""
    return capture_at(sys._getframe(depth), entry)


def capture_at(frame: FrameType | None, entry: CodeType | None) -> Origin:
    """The origin of what *frame* executes, or the first of its callers that is not the assembler's own."""
    while frame is not None and frame.f_code.co_filename in INTERNAL:
        frame = frame.f_back
    if frame is None:
        raise RuntimeError("no Python frame outside the assembler")
    code = frame.f_code
    if code is entry or entry is None:
        if code.co_filename not in known_modules:
            known_modules[code.co_filename] = _module(frame)
        return (code, frame.f_lasti, None)
    if code.co_filename not in known_modules:
        known_modules[code.co_filename] = _module(frame)
    return (code, frame.f_lasti, _callers(frame.f_back, entry))


def _callers(frame: FrameType | None, entry: CodeType) -> Origin | None:
    global _last_callers
    if frame is None:
        return None
    last = _last_callers
    lasti = frame.f_lasti
    if last[0] is frame and last[1] == lasti and last[2] is entry:
        return last[3]
    chain: list[tuple[CodeType, int]] = []
    at: FrameType | None = frame
    while at is not None:
        code = at.f_code
        if code.co_filename not in INTERNAL:
            if code.co_filename not in known_modules:
                known_modules[code.co_filename] = _module(at)
            chain.append((code, at.f_lasti))
            if code is entry:
                break
        at = at.f_back
    else:
        return None
    origin: Origin | None = None
    for code, lasti in reversed(chain):
        origin = (code, lasti, origin)
    _last_callers = (frame, lasti, entry, origin)
    return origin


def forget() -> None:
    """Let go of the frame that was seen last."""
    global _last_callers
    _last_callers = (None, 0, None, None)


class _Lines:
    """The lines of one code object, looked up by bytecode offset."""

    __slots__ = ("code", "filename", "found", "lines", "offsets")

    def __init__(self, code: CodeType) -> None:
        self.code = code  # held, so that its id stays its own
        self.filename = module_path(code.co_filename)
        self.offsets: list[int] = []
        self.lines: list[int] = []
        self.found: dict[int, tuple[str, int, str]] = {}
        for offset, line in dis.findlinestarts(code):
            if line is not None:
                self.offsets.append(offset)
                self.lines.append(line)

    def at(self, lasti: int) -> tuple[str, int, str]:
        index = bisect.bisect_right(self.offsets, lasti) - 1
        line = self.lines[index] if index >= 0 else self.code.co_firstlineno
        text = linecache.getline(self.code.co_filename, line).strip()
        return self.filename, line, text


# By id, because the hash of a code object takes a walk through all that is in it.
_lines: dict[int, _Lines] = {}


@lru_cache(maxsize=1024)
def module_path(path: str) -> str:
    """*path* below its import root, with forward slashes, the same wherever the code is installed."""
    module = known_modules.get(path, "")
    parts = path.replace(os.sep, "/").split("/")
    if module and module != "__main__":
        depth = module.count(".") + (2 if parts[-1] == "__init__.py" else 1)
        return "/".join(parts[-depth:])
    return parts[-1]


def record(origin: Origin | SourceLocation) -> tuple[str, int, str]:
    """File name, line and source text of *origin*, without its callers."""
    if isinstance(origin, SourceLocation):
        return origin.filename, origin.line, origin.text
    code, lasti, _ = origin
    lines = _lines.get(id(code))
    if lines is None:
        lines = _lines[id(code)] = _Lines(code)
    found = lines.found.get(lasti)
    if found is None:
        found = lines.found[lasti] = lines.at(lasti)
    return found


def resolve(origin: Origin | SourceLocation) -> SourceLocation:
    """The location that *origin* stands for, with its source text where the file can be read."""
    if isinstance(origin, SourceLocation):
        return origin
    code, _, caller = origin
    filename, line, text = record(origin)
    return SourceLocation(
        filename=filename,
        line=line,
        function=code.co_qualname,
        text=text,
        path=code.co_filename,
        caller=None if caller is None else resolve(caller),
    )


def raised_at(error: BaseException, entry: CodeType | None) -> SourceLocation | None:
    """Where in a program's own lines *error* was raised."""
    trace = error.__traceback__
    origin: Origin | None = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if (code is entry or origin is not None) and code.co_filename not in INTERNAL:
            known_modules.setdefault(code.co_filename, _module(trace.tb_frame))
            origin = (code, trace.tb_lasti, origin)
        trace = trace.tb_next
    return None if origin is None else resolve(origin)
