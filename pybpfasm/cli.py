# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The command line, ``python -m pybpfasm``.

What a command works on is named in one of these ways:

    prog.s                       assembly text (any other name than those below)
    prog.bin                     instructions as bytes
    prog.o, prog.o:name          an ELF object, or one of its programs
    package.module:program       a program, or a function without parameters that returns one
    file.py:program(8000)        the same in a file; settings are Python constants
    -                            standard input, text or bytes

Exit status: 0 done, 1 failed, 2 wrong usage. Errors go to standard error and say what to do.
"""

from __future__ import annotations

import argparse
import ast
import bisect
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pybpfasm import streams, usage
from pybpfasm.errors import PybpfasmError, suggestion
from pybpfasm.version import ShowVersion

if TYPE_CHECKING:
    from pybpfasm.instruction import Instruction
    from pybpfasm.layout import ByteOrder
    from pybpfasm.program import Function, ProgramSpec, Template

__all__ = [
    "ELF_MAGIC",
    "CliError",
    "Parser",
    "UsageError",
    "check_output",
    "level_option",
    "load_programs",
    "main",
    "run_options",
    "tell",
]

#: How an ELF file begins.
ELF_MAGIC: Final = b"\x7fELF"


class CliError(PybpfasmError):
    """What was asked for can't be done; the message says why and what to do next."""


class UsageError(CliError):
    """The command was not written as it must be; ``hint`` says what to do, where the message does not."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Parser(usage.Parser):
    """A parser whose errors end the command with status 2."""

    def refuse(self, message: str, hint: str) -> NoReturn:
        raise UsageError(message, hint)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    # The findings of a check are a list, to which it adds what it cannot read.
    json = arguments[:1] == ["elf"] and "--json" in arguments
    return _guarded(lambda: _command(arguments), json=json)


def _command(arguments: list[str]) -> int:
    foreign = {"check": "check", "elf": "elf.cli"}.get(arguments[0] if arguments else "")
    try:
        if foreign is not None:
            return _foreign(foreign, arguments[1:])
        options = usage.parse(*_parser(), arguments)
    except SystemExit as stop:  # the help or the version was shown
        return stop.code if isinstance(stop.code, int) else 2
    return int(options.run(options))


def _guarded(command: Any, *, json: bool = False) -> int:
    """Run a command; what goes wrong is told on standard error, and with *json* as a document too."""
    try:
        status: int = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has seen enough
        streams.give_up_output()
        return 1
    except (PybpfasmError, OSError) as error:
        if streams.output_fails(error):
            streams.give_up_output()
        elif json:
            from json import dumps

            print(dumps({"error": _words(error), "hint": getattr(error, "hint", "")}, indent=2))
        return tell(error)
    except KeyboardInterrupt:
        return 130


def tell(error: PybpfasmError | OSError) -> int:
    """Say on standard error what went wrong; returns the exit status."""
    hint = getattr(error, "hint", "")
    print(f"error: {_words(error)}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def _words(error: PybpfasmError | OSError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if streams.output_fails(error):
        return f"the output cannot be written: {error.strerror}"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and those of the commands by name."""
    parser = Parser(
        prog="python -m pybpfasm",
        description="Assemble, disassemble, draw, check and run eBPF programs.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    made: dict[str, Parser] = {}

    def command(name: str, run: Any, help: str, what: str = "text, bytes, an object or a program") -> Parser:
        one = made[name] = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        one.set_defaults(run=run)
        one.add_argument("target", help=what)
        return one

    asm = command("asm", _asm, "assemble text, or a program, to bytes", "a file of text, or a program")
    asm.add_argument("-o", "--output", metavar="FILE", help="where to write (default: standard output)")
    asm.add_argument("--format", choices=("bin", "hex"), help="default: hex on standard output, else bin")
    level_option(asm)
    _byteorder(asm)

    dis = command("dis", _dis, "disassemble to the kernel's syntax")
    dis.add_argument("--no-lines", action="store_true", help="leave out the Python lines")
    level_option(dis)
    _byteorder(dis)

    cfg = command("cfg", _cfg, "draw the control-flow graph as SVG")
    cfg.add_argument("-o", "--output", metavar="FILE", help="where to write (default: standard output)")
    _byteorder(cfg)

    for name, help in (
        ("elf", "show, write and link ELF objects"),
        ("check", "check programs before they are loaded"),
    ):
        made[name] = commands.add_parser(name, help=help, add_help=False)

    run = command("run", _run, "run a program without a kernel")
    run_options(run)
    _byteorder(run)
    return parser, made


def level_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what programs are written for."""
    parser.add_argument(
        "--target",
        dest="level",
        metavar="LEVEL",
        help="an ISA level, v1 to v5, or a Linux release: programs in Python are written for it, "
        "and what it lacks is refused",
    )


def run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run``."""
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--hex",
        metavar="BYTES",
        help="the packet (64 zeros where none is given); for text and bytes the memory that r1 points at",
    )
    given.add_argument("--file", metavar="FILE", help="the same from a file")
    given.add_argument("--pcap", metavar="FILE", help="packets from a capture, one after the other")
    parser.add_argument("--packet", type=_number, metavar="N", help="only the N-th packet of the capture")
    parser.add_argument("--mark", type=_number, metavar="MARK", help="the packet's mark, 4242 or 0x1092 say")
    parser.add_argument(
        "--budget",
        type=_number,
        default=20_000_000,
        metavar="N",
        help="how many instructions a run may take (default: %(default)s)",
    )
    parser.add_argument("--trace", action="store_true", help="show every instruction with its Python line")
    parser.add_argument("--step", action="store_true", help="go through the run at a prompt, either way")


def _number(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 32 bits")
    return number


def _byteorder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--big-endian", dest="byteorder", action="store_const", const="big", default="little",
        help="bytes of a big-endian machine",
    )  # fmt: skip


# Finding what a target names.
def load_programs(
    target: str, byteorder: ByteOrder = "little", level: str | None = None
) -> list[ProgramSpec]:
    """The programs that *target* names (see the top of this module).

    Text and bytes are a program of type ``UNSPEC`` with the file's name. With *level*, an ISA level or a
    Linux release, templates are built for that, and what other programs have beyond it is an `AsmError`.
    Raises `PybpfasmError`, `OSError`.
    """
    found = _load(target, byteorder, level)
    if level is not None:
        from pybpfasm.target import check_target

        for spec in found:
            check_target(spec.instructions, level)
    return found


def _shown(target: str) -> str:
    return "standard input" if target == "-" else target


@contextmanager
def _named(target: str) -> Iterator[None]:
    """An error in what was read says where that is from."""
    try:
        yield
    except PybpfasmError as error:
        raise CliError(f"{_shown(target)}: {error}") from error


def _load(target: str, byteorder: ByteOrder, level: str | None) -> list[ProgramSpec]:
    if not target:
        raise UsageError("an empty name: name a file, module:program, or - for standard input")
    path, separator, name = target.rpartition(":")
    if separator and not Path(target).exists():
        if path.endswith(".py") or not Path(path).exists():
            return [_from_module(path, name, byteorder, level)]
        return [_from_object(Path(path).read_bytes(), path, name)]
    if target.endswith(".py") and Path(target).is_file():
        raise UsageError(
            f"{target} is a module; name what is in it, {target}:program{_listed(_file(target))}"
        )
    if target != "-" and not Path(target).exists() and _is_module(target):
        raise UsageError(
            f"{target} is a module; name what is in it, {target}:program{_listed(_module(target))}"
        )
    data = sys.stdin.buffer.read() if target == "-" else Path(target).read_bytes()
    if data.startswith(ELF_MAGIC):
        from pybpfasm.elf import read_object

        with _named(target):
            found = list(read_object(data).programs.values())
        if not found:
            raise CliError(f"{_shown(target)} has no programs")
        return list(found)
    if target.endswith(".o"):
        raise CliError(f"{target} is no ELF object; bytes and text have another ending, .bin or .s say")
    return [_bare(data, target, byteorder)]


def _one(target: str, byteorder: ByteOrder, level: str | None = None) -> ProgramSpec:
    found = load_programs(target, byteorder, level)
    if len(found) > 1:
        names = ", ".join(spec.name for spec in found)
        raise UsageError(f"{target} has several programs ({names}); name one, {target}:{found[0].name}")
    return found[0]


def _bare(data: bytes, target: str, byteorder: ByteOrder) -> ProgramSpec:
    """Text or bytes as a program."""
    from pybpfasm.instruction import decode
    from pybpfasm.kernel.enums import ProgType
    from pybpfasm.program import ProgramSpec

    name = "stdin" if target == "-" else Path(target).stem
    labels: dict[int, str] = {}
    if _is_text(data):
        from pybpfasm.text import parse

        assembly = parse(data.decode(), filename="<stdin>" if target == "-" else target)
        instructions = assembly.instructions
        labels = {slot: label for label, slot in reversed(assembly.labels.items())}
    else:
        with _named(target):
            instructions = decode(data, byteorder)
    if not instructions:
        raise CliError(f"{_shown(target)} has no instructions")
    return ProgramSpec(
        name,
        ProgType.UNSPEC,
        None,
        "GPL",
        tuple(instructions),
        tuple(_functions(instructions, labels, name)),
        byteorder,
    )


def _functions(instructions: list[Instruction], labels: dict[int, str], name: str) -> Iterator[Function]:
    """The functions of bare instructions: what is called or has its address taken begins one."""
    from pybpfasm.program import Function

    slots: list[int] = []
    at = 0
    starts = {0}
    for insn in instructions:
        slots.append(at)
        starts.add(insn.callee(at) or 0)
        at += insn.slots
    ordered = sorted(starts & set(slots))
    for start, end in zip(ordered, [*ordered[1:], at], strict=True):
        first = bisect.bisect_left(slots, start)
        inside = {
            bisect.bisect_left(slots, slot) - first: label
            for slot, label in labels.items()
            if start < slot < end
        }
        shown = labels.get(start, f"function_{start}" if start else name)
        yield Function(shown, start, (), None, inside)


def _is_text(data: bytes) -> bool:
    """Whether *data* is text: instructions as bytes have zeros in them, or are no UTF-8."""
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _from_object(data: bytes, path: str, name: str) -> ProgramSpec:
    if not data.startswith(ELF_MAGIC):
        raise UsageError(f"{path} is no ELF object; leave out :{name}")
    from pybpfasm.elf import read_object

    with _named(path):
        return read_object(data).program(name)


def _is_module(name: str) -> bool:
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise CliError(
                f"there is no module {name!r}: run this where the package is, or name a file, file.py:program"
            ) from None
        raise CliError(f"{name} needs the module {error.name!r}, which is not installed") from None
    except Exception as error:
        raise _import_error(name, error) from error


def _file(path: str) -> ModuleType:
    name = Path(path).stem
    # Two programs of one file share its maps, so it is executed once, where another module has its name too.
    for known_as in (name, str(Path(path).resolve())):
        known = sys.modules.get(known_as)
        if known is None:
            break
        origin = getattr(known, "__file__", None)
        if origin and Path(origin).exists() and Path(origin).samefile(path):
            return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CliError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[known_as] = module
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
    except OSError:
        sys.modules.pop(known_as, None)
        raise
    except Exception as error:
        sys.modules.pop(known_as, None)
        raise _import_error(path, error) from error
    return module


def _import_error(what: str, error: Exception) -> PybpfasmError:
    """What to say of an *error* while the module *what* was imported."""
    if isinstance(error, PybpfasmError):
        # A mistake in a program has its line; one in a structure or a map is where it was declared.
        located = getattr(error, "location", None) is not None
        return error if located else CliError(f"{_where(error)}: {error}")
    return CliError(f"{what} can't be imported: {type(error).__name__}: {error} ({_where(error)})")


def _where(error: BaseException) -> str:
    """The file and line of somebody's code at which *error* came up."""
    traceback = error.__traceback__
    where = ""
    while traceback is not None:
        frame = traceback.tb_frame.f_code.co_filename
        if not frame.startswith(("<", os.path.dirname(__file__) + os.sep)):
            where = f"{frame}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return where


def _programs_in(module: ModuleType) -> list[str]:
    from pybpfasm.program import ProgramSpec, Template

    return [name for name, value in vars(module).items() if isinstance(value, (ProgramSpec, Template))]


def _listed(module: ModuleType) -> str:
    names = _programs_in(module)
    return f" (it has {', '.join(names)})" if names else " (it has no programs)"


def _from_module(module_name: str, expression: str, byteorder: ByteOrder, level: str | None) -> ProgramSpec:
    from pybpfasm.program import ProgramSpec, Template

    name, positional, keywords = _call(expression)
    if module_name.endswith(".py"):
        if not Path(module_name).is_file():
            raise CliError(f"there is no file {module_name}")
        module = _file(module_name)
    else:
        if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
            raise CliError(
                f"there is no file {module_name}:{expression}, and {module_name!r} is no module's name"
            )
        module = _module(module_name)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = _programs_in(module)
            raise CliError(
                f"{module_name} has no {name!r}{suggestion(name, known)}{_listed(module)}"
            ) from None
    try:
        if isinstance(found, Template):
            found = _build(found, byteorder, level, *positional, **keywords)
        elif callable(found) and not isinstance(found, ProgramSpec):
            found = found(*positional, **keywords)
            if isinstance(found, Template):
                found = _build(found, byteorder, level)
    except PybpfasmError:
        raise
    except Exception as error:
        if isinstance(error, TypeError) and (wrong := _wrong_settings(found, positional, keywords)):
            if wrong == "none":
                raise UsageError(f"{name} takes no settings: write {module_name}:{name}") from None
            raise UsageError(
                f"{name} takes {wrong}. Write them as constants, {module_name}:{name}(8000), or "
                "name a function without parameters that returns the program"
            ) from None
        what = f"{type(error).__name__}: {error} ({_where(error)})"
        raise CliError(f"{module_name}:{expression} failed: {what}") from error
    if not isinstance(found, ProgramSpec):
        raise CliError(
            f"{module_name}:{expression} is of type {type(found).__name__}, "
            "not a program or a function that returns one"
        )
    return found


def _wrong_settings(found: Any, positional: list[Any], keywords: dict[str, Any]) -> str:
    """What to say of the settings of a program or a function, if they are not those that it takes."""
    import inspect  # only where something is wrong

    from pybpfasm.program import Template

    try:
        signature = inspect.signature(found._function if isinstance(found, Template) else found)
    except (TypeError, ValueError):  # a function of C
        return ""
    if isinstance(found, Template):  # what the program is written to, and its context, are not settings
        signature = signature.replace(parameters=list(signature.parameters.values())[2:])
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        return f"settings: {', '.join(signature.parameters)} ({error})" if signature.parameters else "none"
    return ""


def _build(
    template: Template[...], byteorder: ByteOrder, level: str | None, *positional: Any, **keywords: Any
) -> ProgramSpec:
    chosen = template if level is None else template.for_target(level)
    # What is not asked for is the machine's own.
    order = byteorder if byteorder == "big" else sys.byteorder
    return chosen.build_for(order, *positional, **keywords)


def _call(expression: str) -> tuple[str, list[Any], dict[str, Any]]:
    """``name`` or ``name(1, key="x")``: the name and the arguments."""
    try:
        tree = ast.parse(expression, mode="eval").body
        if isinstance(tree, ast.Call):
            positional = [ast.literal_eval(argument) for argument in tree.args]
            keywords = {
                word.arg: ast.literal_eval(word.value) for word in tree.keywords if word.arg is not None
            }
            tree = tree.func
        else:
            positional, keywords = [], {}
        name = ast.unparse(tree)
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(name)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UsageError(
            f"{expression!r} is neither a name nor a call with constants, such as program(8000, 'eth0')"
        ) from None
    return name, positional, keywords


def check_output(output: str | None, targets: Sequence[str]) -> None:
    """Refuse to write to no name, or over what is read; raises `UsageError`."""
    if output == "":
        raise UsageError("-o needs the name of a file", "write -o FILE, or -o - for standard output")
    if output is None or not Path(output).exists():
        return
    for target in targets:
        for name in (target, target.rpartition(":")[0]):
            if Path(name).is_file() and Path(output).samefile(name):
                raise UsageError(f"{output} is what is read: it would be overwritten")


# Commands.
def _write(data: bytes, output: str | None, target: str) -> None:
    check_output(output, [target])
    if output is None or output == "-":
        # In pieces: a large one into a pipe that nobody reads any more is lost without an error.
        for at in range(0, len(data), 1 << 14):
            sys.stdout.buffer.write(data[at : at + (1 << 14)])
    else:
        Path(output).write_bytes(data)


def _asm(options: argparse.Namespace) -> int:
    spec = _one(options.target, options.byteorder, options.level)
    code = spec.code()
    form = options.format or ("hex" if options.output is None else "bin")
    if form == "hex":
        code = b"".join(code[at : at + 8].hex(" ").encode() + b"\n" for at in range(0, len(code), 8))
    _write(code, options.output, options.target)
    if spec.maps:
        names = ", ".join(m.name for m in spec.maps)
        print(f"warning: descriptors of maps ({names}) are 0 until the program is loaded", file=sys.stderr)
    return 0


def _dis(options: argparse.Namespace) -> int:
    specs = load_programs(options.target, options.byteorder, options.level)
    words = "\n".join(spec.listing(lines=not options.no_lines) for spec in specs)
    _write(words.encode(sys.stdout.encoding or "utf-8", sys.stdout.errors or "replace"), None, options.target)
    return 0


def _cfg(options: argparse.Namespace) -> int:
    from pybpfasm.cfg import of_program, svg

    spec = _one(options.target, options.byteorder)
    _write(svg(of_program(spec), spec.location, spec.name).encode(), options.output, options.target)
    return 0


def _foreign(module: str, arguments: list[str]) -> int:
    """A command that a part of the library brings."""
    try:
        found = importlib.import_module(f"pybpfasm.{module}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("pybpfasm"):
            raise
        raise CliError(f"{module} is not part of this installation") from error
    return int(found.main(arguments))


def _run(options: argparse.Namespace) -> int:
    from pybpfasm.kernel.enums import ProgType

    if options.packet is not None and options.pcap is None:
        raise UsageError("--packet is one of a capture: name that with --pcap")
    spec = _one(options.target, options.byteorder)
    try:
        data = bytes.fromhex(options.hex) if options.hex is not None else b""
    except ValueError:
        raise UsageError(f"--hex takes bytes in hexadecimal, not {options.hex!r}") from None
    if options.file is not None:
        data = Path(options.file).read_bytes()
    from pybpfasm.emulator.cli import run_bare, run_program

    if spec.type is not ProgType.UNSPEC:
        return run_program(spec, options, input)
    for option in ("pcap", "mark"):
        if getattr(options, option) is not None:
            raise UsageError(
                f"--{option} is for programs with a type: text and bytes run on memory, --hex or --file"
            )
    return run_bare(spec, data, options, input)
