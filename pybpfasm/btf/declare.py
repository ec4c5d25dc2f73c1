# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Reads a declaration in C of a function or a variable, as far as the kernel's own need it.

    int bpf_dynptr_from_skb(struct __sk_buff *s, u64 flags, struct bpf_dynptr *ptr__uninit)

Structures, unions and enumerations are named, not described: whoever compares the declaration with the
kernel's looks at their kind only. Integers have the names of C and of the kernel.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from pybpfasm.btf.builder import BtfBuilder
from pybpfasm.btf.format import BtfError, Linkage

__all__ = ["declare"]

_TOKEN: Final = re.compile(r"\s*([A-Za-z_]\w*|\.\.\.|[*(),;])", re.ASCII)
_WORDS: Final = frozenset({"char", "short", "int", "long", "signed", "unsigned"})
_QUALIFIERS: Final = frozenset({"const", "volatile", "restrict"})
_FIXED: Final = re.compile(r"(?:__)?([us]|be|le)(8|16|32|64)|u?int(8|16|32|64)_t", re.ASCII)
_MAX_DEPTH: Final = 8
_MAX_LENGTH: Final = 4096


def declare(builder: BtfBuilder, text: str) -> tuple[str, int]:
    """Add what *text* declares to *builder*, as external; returns its name and the id of its FUNC or VAR.

    Raises `BtfError` that says what is wrong with the text.
    """
    return _Parser(builder, text).read()


class _Parser:
    def __init__(self, builder: BtfBuilder, text: str) -> None:
        self.builder = builder
        self.text = " ".join(text.split())
        if len(text) > _MAX_LENGTH:
            raise BtfError(f"a declaration of {len(text)} characters; {_MAX_LENGTH} are the most")
        self.tokens: list[str] = []
        at = 0
        while at < len(self.text):
            found = _TOKEN.match(self.text, at)
            if found is None:
                self.fail(f"{self.text[at:].split()[0]!r} is nothing that a declaration has")
            self.tokens.append(found[1])
            at = found.end()
        if self.tokens[-1:] == [";"]:
            self.tokens.pop()
        if self.tokens[:1] == ["extern"]:
            self.tokens.pop(0)

    def fail(self, message: str) -> NoReturn:
        raise BtfError(f"the declaration {self.text[:200]!r}: {message}")

    def peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self, wanted: str = "") -> str:
        if not self.tokens or (wanted and self.tokens[0] != wanted):
            self.fail(f"{wanted or 'a word'!r} is missing before {self.peek() or 'the end'!r}")
        return self.tokens.pop(0)

    def read(self) -> tuple[str, int]:
        type_id = self.pointers(self.base())
        name = self.take()
        if not name.isidentifier():
            self.fail(f"a name is missing before {name!r}")
        if self.peek() == "(":
            proto = self.builder.add_func_proto(type_id, self.parameters(0))
            found = self.builder.add_func(name, proto, Linkage.EXTERN)
        else:
            found = self.builder.add_var(name, type_id, Linkage.EXTERN)
        if self.tokens:
            self.fail(f"{self.tokens[0]!r} after its end")
        return name, found

    def base(self) -> int:
        """A type up to its first ``*``."""
        qualifiers: list[str] = []
        words: list[str] = []
        found: int | None = None
        while True:
            word = self.peek()
            if word in _QUALIFIERS:
                qualifiers.append(self.take())
            elif found is None and word in ("struct", "union", "enum") and not words:
                found = self.tagged(self.take(), self.take())
            elif found is None and word in _WORDS:
                words.append(self.take())
            elif found is None and not words and word.isidentifier():
                found = self.named(self.take())
            else:
                break
        if found is None:
            if not words:
                self.fail(f"a type is missing before {self.peek() or 'the end'!r}")
            found = self.integer(words)
        return self.builder.add_const(found) if "const" in qualifiers else found

    def tagged(self, keyword: str, tag: str) -> int:
        if not tag.isidentifier():
            self.fail(f"{keyword} {tag} has no name")
        if keyword == "enum":
            return self.builder.add_enum(tag, {})
        add = self.builder.add_struct if keyword == "struct" else self.builder.add_union
        return add(tag, 0, ())

    def integer(self, words: list[str]) -> int:
        signed = "unsigned" not in words
        if "char" in words:
            return self.builder.add_int(" ".join(words), 1, signed=signed)
        size = 2 if "short" in words else 8 if "long" in words else 4
        return self.builder.add_int(" ".join(words), size, signed=signed)

    def named(self, name: str) -> int:
        if name == "void":
            return 0
        if name in ("bool", "_Bool"):
            return self.builder.add_int("_Bool", 1, bool_=True)
        if name in ("size_t", "ssize_t"):
            return self.builder.add_int(name, 8, signed=name[1] == "s")
        fixed = _FIXED.fullmatch(name)
        if fixed is None:
            self.fail(f"the type {name!r} is not known; write struct {name} for a structure")
        signed = fixed[1] == "s" or name.startswith("int")
        return self.builder.add_int(name, int(fixed[2] or fixed[3]) // 8, signed=signed)

    def pointers(self, type_id: int) -> int:
        while self.peek() == "*":
            self.take()
            type_id = self.builder.add_ptr(type_id)
            while self.peek() in _QUALIFIERS:
                if self.take() == "const":
                    type_id = self.builder.add_const(type_id)
        return type_id

    def parameters(self, depth: int) -> list[tuple[str, int]]:
        """What is between the parentheses of a function, which end with it."""
        if depth > _MAX_DEPTH:
            self.fail("functions are nested too deeply")
        self.take("(")
        found: list[tuple[str, int]] = []
        if self.peek() == ")":
            self.take()
            return found
        while True:
            if self.peek() == "...":
                self.take()
                self.take(")")
                return [*found, ("", 0)]
            name = ""
            type_id = self.pointers(self.base())
            if self.peek() == "(":
                # A pointer to a function.
                self.take()
                self.take("*")
                name = self.take() if self.peek() != ")" else ""
                self.take(")")
                proto = self.builder.add_func_proto(type_id, self.parameters(depth + 1))
                type_id = self.builder.add_ptr(proto)
            elif self.peek().isidentifier():
                name = self.take()
            if type_id == 0:
                if found or name or self.peek() != ")":
                    self.fail("a parameter can't be void")
                self.take()
                return found
            found.append((name, type_id))
            if self.peek() != ",":
                self.take(")")
                return found
            self.take()
