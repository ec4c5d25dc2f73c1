# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A line of assembly as tokens, and the cursor that reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final, NoReturn

from pybpfasm.errors import suggestion
from pybpfasm.text.errors import TextError

# Every alternative is a run of one class of characters or a fixed text: matching is linear in the line.
_TOKEN: Final = re.compile(
    r"""[ \t\r\f\v]+
    |(?P<map>map\[[^\[\]\s]*\](?:\[0\])?(?:\+\d+)?)
    |(?P<number>0[xX][0-9a-fA-F]+|[0-9]+)(?![\w.$])
    |(?P<op>s>>=|s>=|s<=|s>|s<|s/=|s%=|<<=|>>=|==|!=|<=|>=|\+=|-=|\*=|/=|%=|\|=|&=|\^=|[-+*()\[\],=<>&:])
    |(?P<name>kernel-function|%?[A-Za-z_.$][\w.$]*)
    |(?P<comment>;|//|\#)
    """,
    re.VERBOSE | re.ASCII,
)

REGISTERS: Final = {
    f"{percent}{width}{number}": (width, number)
    for percent in ("", "%")
    for width in "rw"
    for number in range(11)
}
_LIKE_REGISTER: Final = re.compile(r"%?[rw]\d+|%\w*", re.ASCII)

# A 64-bit number has 20 decimal digits; more than this is refused unread, as int() is quadratic.
_DIGITS: Final = 40
_MESSAGE: Final = 300

# kind, text, column (from 0)
Token = tuple[str, str, int]


class Source:
    """Where a line comes from, for errors."""

    __slots__ = ("filename", "line", "text")

    def __init__(self, text: str, line: int, filename: str) -> None:
        self.text = text
        self.line = line
        self.filename = filename

    def error(self, message: str, column: int) -> TextError:
        """An error at *column*, counted from 0."""
        if len(message) > _MESSAGE:  # it quotes the text
            message = message[: _MESSAGE - 1] + "…"
        return TextError(message, self.line, column + 1, self.text, self.filename)


def tokens(source: Source, start: int) -> list[Token]:
    """The tokens of a line from column *start* on, up to its comment."""
    text = source.text
    end = len(text)
    out: list[Token] = []
    match = _TOKEN.match
    position = start
    while position < end:
        found = match(text, position)
        if found is None:
            word = re.compile(r"[\w.$]+|.", re.DOTALL).match(text, position)
            assert word is not None
            shown = word[0] if len(word[0]) <= _DIGITS else word[0][:_DIGITS] + "…"
            what = "is no number" if word[0][0].isdigit() else "means nothing here"
            raise source.error(f"{shown!r} {what}", position)
        kind = found.lastgroup
        if kind == "comment":
            if found[0] == "#" and _names_a_function(out, text, position):
                out.append(("op", "#", position))
            else:
                break
        elif kind is not None:
            out.append((kind, found[0], position))
        position = found.end()
    return out


def _names_a_function(before: list[Token], text: str, position: int) -> bool:
    """Whether ``#`` belongs to a call, ``call name#5`` or ``call pc+2#name``, and starts no comment."""
    if len(before) < 2:
        return False
    kind, last, column = before[-1]
    after = text[position + 1 : position + 2]
    if column + len(last) != position or not after:
        return False
    if before[-2][1] == "call":
        if after == "-":
            after = text[position + 2 : position + 3]
        return kind == "name" and after.isdigit()
    call = [word for _, word, _ in before[-4:-2]] == ["call", "pc"]
    return call and kind == "number" and (after.isalnum() or after in "_.$")


class Cursor:
    """The tokens of one statement, read from left to right."""

    __slots__ = ("at", "hints", "source", "symbols", "tokens")

    def __init__(
        self, source: Source, tokens: list[Token], at: int, symbols: Mapping[str, int], *, hints: bool = True
    ) -> None:
        self.source = source
        self.tokens = tokens
        self.at = at
        self.symbols = symbols
        self.hints = hints

    def suggest(self, name: str, known: Iterable[str]) -> str:
        """``"; did you mean 'x'?"``, or nothing."""
        # Comparing costs the product of the lengths: only what a person may have mistyped is worth it.
        if not self.hints or len(name) > _DIGITS:
            return ""
        return suggestion(name, [k for k in islice(known, 2000) if len(k) <= _DIGITS])

    def column(self) -> int:
        """Where the next token is, or the end of the text."""
        if self.at < len(self.tokens):
            return self.tokens[self.at][2]
        if not self.tokens:
            return 0
        _, text, column = self.tokens[-1]
        return column + len(text)

    def fail(self, message: str, column: int | None = None) -> NoReturn:
        """Raise an error at *column*, or at the next token."""
        raise self.source.error(message, self.column() if column is None else column)

    def peek(self) -> str:
        """The text of the next token, empty at the end."""
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def kind(self) -> str:
        """The kind of the next token, empty at the end."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, text: str) -> bool:
        """Pass the next token if it is *text*."""
        if self.at < len(self.tokens) and self.tokens[self.at][1] == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str, what: str = "") -> None:
        """Pass *text*, or fail."""
        if not self.take(text):
            found = self.peek()
            self.fail(f"{what or repr(text)} expected" + (f", not {found!r}" if found else " at the end"))

    def end(self) -> None:
        """Fail unless everything has been read."""
        if self.at < len(self.tokens):
            self.fail(f"{self.peek()!r} is too much: the statement ends before it")

    def name(self, what: str) -> str:
        """A name."""
        if self.kind() != "name":
            found = self.peek()
            self.fail(f"{what} expected" + (f", not {found!r}" if found else " at the end"))
        self.at += 1
        return self.tokens[self.at - 1][1]

    def is_register(self) -> bool:
        """Whether the next token is a register, or looks like one that does not exist."""
        return self.kind() == "name" and (
            self.peek() in REGISTERS or _LIKE_REGISTER.fullmatch(self.peek()) is not None
        )

    def register(self, what: str = "a register") -> tuple[str, int]:
        """A register: ``"r"`` or ``"w"``, and its number."""
        found = self.peek()
        register = REGISTERS.get(found)
        if register is None:
            if self.is_register():
                width = "w" if found.lstrip("%").startswith("w") else "r"
                self.fail(f"register {found} does not exist: {width}0 to {width}10")
            self.fail(f"{what} expected" + (f", not {found!r}" if found else " at the end"))
        self.at += 1
        return register

    def r(self, what: str = "a register") -> int:
        """The number of a 64-bit register."""
        column = self.column()
        width, number = self.register(what)
        if width != "r":
            self.fail(f"the 64-bit register r{number} expected, not w{number}", column)
        return number

    def is_number(self) -> bool:
        """Whether a number follows, perhaps with a sign."""
        kind, text = self.kind(), self.peek()
        return kind == "number" or text in ("-", "+") or (kind == "name" and text in self.symbols)

    def number(self, low: int, high: int, bits: int, what: str = "a number") -> int:
        """A number from *low* to *high*.

        In hexadecimal and without a sign it is *bits* bits, of which the highest is the sign.
        """
        start = self.column()
        sign = self.peek() if self.peek() in ("-", "+") else ""
        if sign:
            self.at += 1
        kind, text = self.kind(), self.peek()
        if kind == "name" and text in self.symbols:
            value = self.symbols[text]
            if not isinstance(value, int):
                self.fail(f"the symbol {text} is {value!r}, which is no whole number")
        elif kind == "number":
            if len(text) > _DIGITS:
                self.fail(f"a number of {len(text)} digits does not fit {bits} bits", start)
            if text[0] == "0" and text.strip("0").isdigit():
                self.fail(f"{text} is octal in C and decimal elsewhere: write {text.lstrip('0')}", start)
            value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
        elif kind == "name":
            self.fail(
                f"{what} expected, not {text!r}" + self.suggest(text, self.symbols)
                if not self.is_register()
                else f"{what} expected, not the register {text}"
            )
        else:
            self.fail(f"{what} expected" + (f", not {text!r}" if text else " at the end"))
        self.at += 1
        if sign == "-":
            value = -value
        elif not sign and text[:2] in ("0x", "0X") and high < value < 1 << bits and low < 0:
            value -= 1 << bits
        if not low <= value <= high:
            self.fail(f"{sign}{text} does not fit: {low} to {high}", start)
        return value

    def imm32(self) -> int:
        """A signed 32-bit immediate."""
        return self.number(-(1 << 31), (1 << 31) - 1, 32)

    def offset(self) -> int:
        """What follows the register of an address: a sign and a 16-bit number, or nothing (0)."""
        sign = self.peek()
        if sign not in ("+", "-"):
            return 0
        start = self.column()
        self.at += 1
        if self.peek() in ("+", "-"):
            self.fail("one sign is enough")
        value = self.number(0, 1 << 64, 64, "an offset")
        value = -value if sign == "-" else value
        if not -(1 << 15) <= value < 1 << 15:
            self.fail(f"offset {value} does not fit 16 bits: -32768 to 32767", start)
        return value
