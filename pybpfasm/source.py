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
_INTERNAL = frozenset(os.path.join(_HERE, name) for name in ("asm.py", "layout.py", "maps.py", "program.py"))
_MODULES: dict[str, str] = {}


def capture(entry: CodeType | None, depth: int = 2) -> Origin:
    """The origin of the statement being executed *depth* frames above, up to the function *entry*."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code.co_filename in _INTERNAL:
        frame = frame.f_back
    if frame is None:
        raise RuntimeError("no Python frame outside the assembler")
    code = frame.f_code
    if code.co_filename not in _MODULES:
        _MODULES[code.co_filename] = frame.f_globals.get("__name__", "")
    if code is entry or entry is None:
        return (code, frame.f_lasti, None)
    return (code, frame.f_lasti, _callers(frame.f_back, entry))


def _callers(frame: FrameType | None, entry: CodeType) -> Origin | None:
    chain: list[tuple[CodeType, int]] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename not in _INTERNAL:
            if code.co_filename not in _MODULES:
                _MODULES[code.co_filename] = frame.f_globals.get("__name__", "")
            chain.append((code, frame.f_lasti))
            if code is entry:
                break
        frame = frame.f_back
    else:
        return None
    origin: Origin | None = None
    for code, lasti in reversed(chain):
        origin = (code, lasti, origin)
    return origin


@lru_cache(maxsize=4096)
def _line_starts(code: CodeType) -> tuple[list[int], list[int]]:
    offsets: list[int] = []
    lines: list[int] = []
    for offset, line in dis.findlinestarts(code):
        if line is not None:
            offsets.append(offset)
            lines.append(line)
    return offsets, lines


def line_of(code: CodeType, lasti: int) -> int:
    """The line of *code* at bytecode offset *lasti*."""
    offsets, lines = _line_starts(code)
    index = bisect.bisect_right(offsets, lasti) - 1
    return lines[index] if index >= 0 else code.co_firstlineno


@lru_cache(maxsize=1024)
def module_path(path: str) -> str:
    """*path* below its import root, with forward slashes, the same wherever the code is installed."""
    module = _MODULES.get(path, "")
    parts = path.replace(os.sep, "/").split("/")
    if module and module != "__main__":
        depth = module.count(".") + (2 if parts[-1] == "__init__.py" else 1)
        return "/".join(parts[-depth:])
    return parts[-1]


def resolve(origin: Origin) -> SourceLocation:
    """The location that *origin* stands for, with its source text where the file can be read."""
    code, lasti, caller = origin
    line = line_of(code, lasti)
    text = linecache.getline(code.co_filename, line).strip()
    return SourceLocation(
        filename=module_path(code.co_filename),
        line=line,
        function=code.co_qualname,
        text=text,
        path=code.co_filename,
        caller=None if caller is None else resolve(caller),
    )
