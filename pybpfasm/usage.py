# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How the command lines read what was typed, and what they say of what they do not understand."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

__all__ = ["Parser", "no_command", "parse", "parse_command"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions, of one sentence that says what was probably meant and a hint.

    Options are not abbreviated. ``stray`` says what a word that belongs to nothing may have been.
    """

    stray = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str, hint: str = "") -> NoReturn:
        """Refuse what was typed."""
        self.refuse(_plainer(message), hint or f"`{self.prog} --help` shows what can be said")

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse's own, this raises OSError where it cannot be written."""
        (sys.stdout if file is None else file).write(self.format_help())

    def refuse(self, message: str, hint: str) -> NoReturn:
        """Raise an exception with these words."""
        raise NotImplementedError


def _plainer(message: str) -> str:
    """In our words, what argparse says."""
    message = message.removeprefix("argument ")
    if found := re.fullmatch(r"(.*): invalid choice: (.*) \(choose from (.*)\)", message, re.DOTALL):
        return f"{found[1]}: {found[2]} is none of {found[3].replace(chr(39), '')}"
    if found := re.fullmatch(r"(.*): ignored explicit argument (.*)", message, re.DOTALL):
        return f"{found[1]} takes no value, and {found[2]} was given"
    if found := re.fullmatch(r"(.*): not allowed with argument (.*)", message, re.DOTALL):
        return f"{found[1]} and {found[2]} cannot both be given"
    if found := re.fullmatch(r"(.*): invalid (?:float|int) value: (.*)", message, re.DOTALL):
        return f"{found[1]}: {found[2]} is no number"
    return message


def no_command(name: str, commands: Sequence[str]) -> str:
    """What to say of a command that there is not."""
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(name, commands, n=1)
    wanted = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(commands)}"
    return f"there is no command {name!r}{wanted}"


def parse(parser: Parser, commands: Mapping[str, Parser], words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line that begins with one of the commands, whose parsers are given."""
    at = next((at for at, word in enumerate(words) if word in commands), len(words))
    for word in words[:at]:
        option = word.partition("=")[0]
        if at < len(words) and word.startswith("-") and option not in parser._option_string_actions:
            prog = f"{parser.prog} {words[at]}"
            commands[words[at]].error(f"{option} stands before the command", f"write `{prog} {option} …`")
    first = next((word for word in words if not word.startswith("-")), "")
    if first and first not in commands:
        parser.error(no_command(first, list(commands)))
    if first:
        _check_options(commands[first], words[at + 1 :])
    arguments, extra = parser.parse_known_args(words)
    # That of all commands would say so too, and point to a help that does not show what can be said.
    _refuse_extra(commands.get(first, parser), words, extra)
    if not first:
        parser.refuse("no command was given", f"known are {', '.join(commands)}; see --help")
    return arguments


def parse_command(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Parse what stands behind a command."""
    _check_options(parser, words)
    arguments, extra = parser.parse_known_args(words)
    _refuse_extra(parser, words, extra)
    return arguments


def _check_options(parser: Parser, words: Sequence[str]) -> None:
    """Refuse an option that the command does not have, and name the one that was probably meant.

    argparse would first complain of something that is missing because of the mistake.
    """
    import difflib

    known = parser._option_string_actions
    for word in words:
        if word == "--":
            return
        option = word.partition("=")[0] if word.startswith("--") else word[:2]
        if not re.match("--|-[A-Za-z]", word) or option in known:
            continue
        if word.startswith("--"):
            close = [one for one in known if len(option) > 2 and one.startswith(option)]
            close = close or difflib.get_close_matches(option, known, n=1)
        else:
            close = [one for one in known if one.startswith(f"-{option}")]
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        parser.error(f"there is no option {option}{meant}")


def _refuse_extra(parser: Parser, words: Sequence[str], extra: Sequence[str]) -> None:
    """Refuse words that belong to nothing; a list in several words is a frequent mistake."""
    if not extra:
        return
    before = list(words[: words.index(extra[0])]) if extra[0] in words else []
    option = next((word for word in reversed(before) if word.startswith("-")), "").partition("=")[0]
    action = parser._option_string_actions.get(option)
    hint = meant = ""
    if isinstance(action, argparse._AppendAction) and not extra[0].startswith("-"):
        hint = f"{option} takes one word, and may be repeated: {option} … {option} {extra[0]}"
    elif parser.stray and not extra[0].startswith("-"):
        meant = f"; {parser.stray} {extra[0]}"
    parser.error(f"{' '.join(extra)!r} is not understood{meant}", hint)
