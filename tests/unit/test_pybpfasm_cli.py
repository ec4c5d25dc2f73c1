# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m pybpfasm``: what each command does, exit statuses, and errors without a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pybpfasm.cli import load_programs, main
from pybpfasm.instruction import encode
from pybpfasm.text import assemble
from tests.data.isa.programs import maps_and_calls

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "tests.data.isa.programs:maps_and_calls"
TEXT = "start: r0 = 5\ncall twice\nexit\ntwice: r0 += r0\nback: if r1 == 1 goto back\nexit\n"

MODULE = """
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType
from pybpfasm.program import sched_cls

@sched_cls(AttachType.TCX_INGRESS)
def answer(b: Asm, ctx: SkBuff, value: int, more: int = 0) -> None:
    b.r0 = value + more
    b.exit()

@sched_cls(AttachType.TCX_INGRESS)
def wrong(b: Asm, ctx: SkBuff) -> None:
    b.r10 = 5
    b.exit()

@sched_cls(AttachType.TCX_INGRESS)
def newer(b: Asm, ctx: SkBuff) -> None:
    b.r0 = 1
    with b.If(b.r0 >= 1):
        b.r0 = 2
    b.exit()

@sched_cls(AttachType.TCX_INGRESS)
def narrow(b: Asm, ctx: SkBuff) -> None:
    b.r0 = 1
    with b.If(b.w0 == 1):
        b.r0 = 2
    b.exit()

def made():
    return answer.build(77)

def fails():
    return 1 / 0

number = 5

@sched_cls(AttachType.TCX_INGRESS)
def slips(b: Asm, ctx: SkBuff) -> None:
    b.goto()
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "some_programs.py"
    path.write_text(MODULE)
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "prog.s"
    path.write_text(TEXT)
    return str(path)


def fails(arguments: list[str], status: int, capfd: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == status
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert not out
    return err


def test_asm_and_dis(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["asm", text]) == 0
    code = encode(assemble(TEXT))
    assert bytes.fromhex(capfd.readouterr().out) == code
    out = str(tmp_path / "prog.bin")
    assert main(["asm", text, "-o", out]) == 0
    assert Path(out).read_bytes() == code
    assert main(["asm", text, "--big-endian", "-o", out]) == 0
    assert Path(out).read_bytes() == encode(assemble(TEXT), "big")
    assert capfd.readouterr().out == ""
    assert main(["dis", "--big-endian", out]) == 0
    listing = capfd.readouterr().out
    assert encode(assemble(listing)) == code
    assert "   1: (85) call pc+1\n" in listing
    assert main(["dis", text]) == 0
    assert "twice():\n   3: (0f) r0 += r0\nback:\n   4: (15)" in capfd.readouterr().out


def test_standard_input(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO(b"r0 = 1\nexit\n")

    monkeypatch.setattr(sys, "stdin", Input)
    assert main(["asm", "-", "--format", "hex"]) == 0
    assert capfd.readouterr().out == "b7 00 00 00 01 00 00 00\n95 00 00 00 00 00 00 00\n"


def test_dis_of_a_program(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dis", PROGRAM]) == 0
    assert capfd.readouterr().out == maps_and_calls.build().listing()
    assert main(["dis", "--no-lines", PROGRAM]) == 0
    assert capfd.readouterr().out == maps_and_calls.build().listing(lines=False)


def test_asm_of_a_program_tells_about_maps(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["asm", PROGRAM]) == 0
    out, err = capfd.readouterr()
    assert bytes.fromhex(out) == maps_and_calls.build().code()
    assert "descriptors of maps (stats, flows, events) are 0" in err


def test_settings(module: str) -> None:
    def value(expression: str) -> int:
        return load_programs(f"{module}:{expression}")[0].instructions[0].imm

    assert value("answer(5)") == 5
    assert value("answer(5, more=-2)") == 3
    assert value("made") == 77


def test_targets(module: str, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Programs in Python are written for a target; what it lacks is refused, in them and in text."""
    newer = tmp_path / "newer.s"
    newer.write_text("r0 = 0\nif r0 < 1 goto +0\nexit\n")
    out = tmp_path / "out.o"
    for target, first in (("v1", "r0 == 0x0"), ("v2", "r0 < 0x1")):
        assert main(["dis", f"{module}:newer", "--target", target, "--no-lines"]) == 0
        assert f"if {first} goto" in capfd.readouterr().out
        assert main(["check", f"{module}:newer", "--target", target]) == 0
        capfd.readouterr()
    assert main(["elf", f"{module}:newer", "--target", "v1", "-o", str(out)]) == 0
    assert main(["dis", str(out), "--target", "v1"]) == 0
    capfd.readouterr()
    for command in (["asm"], ["dis"], ["check"]):
        err = fails([*command, f"{module}:narrow", "--target", "v2"], 1, capfd)
        assert "some_programs.py:27: if w0 != 0x1 goto else is of ISA v3" in err
        err = fails([*command, str(newer), "--target", "v1"], 1, capfd)
        assert "if r0 < 0x1 goto pc+0 is of ISA v2" in err
        assert "neither an ISA level" in fails([*command, text, "--target", "v9"], 1, capfd)


def test_programs_for_the_other_byte_order(module: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["asm", f"{module}:answer(1)", "--big-endian"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "b7 00 00 00 00 00 00 01"


def test_cfg(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prog.svg"
    assert main(["cfg", PROGRAM, "-o", str(out)]) == 0
    root = ElementTree.fromstring(out.read_text())
    assert "programs.py:36  b.r6 = b.r1" in [
        "".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert main(["cfg", text]) == 0
    ElementTree.fromstring(capfd.readouterr().out)


def test_elf(module: str, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "prog.o")
    assert main(["elf", f"{module}:made", "-o", out]) == 0
    assert capfd.readouterr().out == ""
    assert main(["elf", out]) == 0
    listed = capfd.readouterr().out
    assert "little-endian BPF object, license Dual BSD/GPL" in listed
    assert "  answer: SCHED_CLS, section tc, 2 slots" in listed
    for target in (out, f"{out}:answer"):
        assert main(["dis", target]) == 0
        assert "0: (b7) r0 = 77" in capfd.readouterr().out
    assert "no program 'answr'" in fails(["dis", f"{out}:answr"], 1, capfd)
    assert "is no ELF object" in fails(["elf", text], 2, capfd)
    assert "is no ELF object; leave out :x" in fails(["dis", f"{text}:x"], 2, capfd)
    Path(out).write_bytes(Path(out).read_bytes()[:100])
    fails(["elf", out], 1, capfd)


def test_run(text: str, module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mem.s"
    path.write_text("r0 = *(u8 *)(r1 +1)\n*(u8 *)(r1 +0) = 7\nexit")
    assert main(["run", str(path), "--hex", "01 02 03"]) == 0
    assert capfd.readouterr().out == "r0 = 0x2\n07 02 03\n"
    data = tmp_path / "packet"
    data.write_bytes(bytes(64))
    assert main(["run", f"{module}:made", "--file", str(data)]) == 0
    assert capfd.readouterr().out == "r0 = 0x4d (77) after 2 instructions\n"
    assert "--hex takes bytes in hexadecimal" in fails(["run", text, "--hex", "xyz"], 2, capfd)
    path.write_text("r0 = *(u8 *)(r1 +1)\nexit")
    assert fails(["run", str(path)], 1, capfd)


def test_text_and_bytes_are_traced_and_stepped_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mem.s"
    path.write_text("r0 = *(u8 *)(r1 +1)\nr0 += r2\nexit\n")
    assert main(["run", str(path), "--hex", "01 05 03", "--trace"]) == 0
    *steps, result, memory = capfd.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in steps] == [
        "0: r0 = *(u8 *)(r1 +1) r0=5",
        "1: r0 += r2 r0=8",
        "2: exit",
    ]
    assert (result, memory) == ("r0 = 0x8", "01 05 03")
    typed = iter(["r", "n", "r", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert main(["run", str(path), "--hex", "01 05 03", "--step"]) == 0
    out = capfd.readouterr().out
    assert "\nr0=5  r1=the memory  r2=3  r10=fp\n" in out
    assert "\nr0=8  r1=the memory  r2=3  r10=fp\n" in out
    # What led to a fault is shown before it.
    path.write_text("r0 = 7\nr1 = *(u8 *)(r0 +1)\nexit\n")
    assert main(["run", str(path), "--trace"]) == 1
    out, err = capfd.readouterr()
    assert "0: r0 = 7" in out
    assert "slot 1" in err


def test_a_run_that_does_not_end(tmp_path: Path, module: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loop.s"
    path.write_text("goto -1\nexit\n")
    assert "did not end within 10 instructions" in fails(["run", str(path), "--budget", "10"], 1, capfd)
    assert main(["run", f"{module}:made", "--budget", "1"]) == 1
    assert "did not end within 1 instructions" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["TEXT", "--pcap", "x"], "--pcap is for programs with a type"),
        (["TEXT", "--mark", "1"], "--mark is for programs with a type"),
        (["TEXT", "--packet", "1"], "--packet is one of a capture: name that with --pcap"),
        (["MODULE:made", "--packet", "1"], "--packet is one of a capture: name that with --pcap"),
        (["MODULE:made", "--mark", "x"], "error: --mark: 'x' is no number of 32 bits"),
        (["MODULE:made", "--mark", "0x100000000"], "error: --mark: '0x100000000' is no number of 32 bits"),
        (["MODULE:made", "--mark=-1"], "error: --mark: '-1' is no number of 32 bits"),
    ],
)
def test_options_of_run_that_do_not_fit(
    words: list[str], says: str, text: str, module: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("TEXT", text).replace("MODULE", module) for word in words]
    assert says in fails(["run", *words], 2, capfd)


def test_what_is_read_is_not_overwritten(
    text: str, module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "other-name"
    link.hardlink_to(text)
    for target, output in ((text, text), (text, str(link)), (f"{module}:made", module)):
        for command in ("asm", "cfg", "elf"):
            before = Path(output).read_text()
            assert "is what is read" in fails([command, target, "-o", output], 2, capfd)
            assert Path(output).read_text() == before


def test_an_object_that_is_read_is_not_overwritten(
    module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made.o"
    assert main(["elf", f"{module}:made", "-o", str(path)]) == 0
    before = path.read_bytes()
    for words in ([], [f"{module}:made"], ["--extract", "license"]):
        assert "made.o is what is read" in fails(["elf", str(path), *words, "-o", str(path)], 2, capfd)
        assert path.read_bytes() == before


def test_an_object_is_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prog.o"
    path.write_bytes(encode(assemble("r0 = 1\nexit")))
    for command in ("dis", "asm", "check", "run"):
        assert "prog.o is no ELF object" in fails([command, str(path)], 1, capfd)


def test_json_of_what_cannot_be_read(
    text: str, module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A document in any case, with the findings about the others; the words for people stay."""
    broken = tmp_path / "broken.s"
    broken.write_text("exit\nr0 = zz\n")
    never = tmp_path / "never.s"
    never.write_text("r0 = r9\ngoto +7\n")
    assert main(["check", "--json", str(broken), str(never), "/no/such", f"{module}:wrong"]) == 1
    out, err = capfd.readouterr()
    found = [(Path(one["program"]).name, one["code"], one["location"]) for one in json.loads(out)]
    assert ("broken.s", "unread", {"file": str(broken), "line": 2}) in found
    assert ("such", "unread", None) in found
    assert ("some_programs.py:wrong", "unread", {"file": "some_programs.py", "line": 14}) in found
    assert any(name == "never" and code != "unread" for name, code, _ in found)
    assert "broken.s:2:6: " in err
    assert "/no/such: No such file or directory" in err
    assert main(["check", "--json", "--type", "UNSPED", str(broken)]) == 2
    out, err = capfd.readouterr()
    (told,) = json.loads(out)
    assert (told["code"], told["message"]) == ("usage", "there is no program type 'UNSPED'")
    assert "did you mean" not in err
    assert main(["elf", "--json", "/no/such.o"]) == 1
    assert json.loads(capfd.readouterr().out) == {
        "error": "/no/such.o: No such file or directory",
        "hint": "",
    }
    assert main(["elf", "--json", text]) == 2
    assert "is no ELF object" in json.loads(capfd.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [
        ("MODULE", 2, "is a module; name what is in it"),
        ("MODULE", 2, "(it has answer, wrong, newer, narrow, slips)"),
        ("tests.data.isa.programs", 2, "(it has maps_and_calls)"),
        (
            "MODULE:answr",
            1,
            "has no 'answr'; did you mean 'answer'? (it has answer, wrong, newer, narrow, slips)",
        ),
        ("MODULE:answer", 2, "answer takes settings: value, more (missing a required argument: 'value')"),
        ("MODULE:answer(1, 2, 3)", 2, "answer takes settings: value, more (too many positional arguments)"),
        ("MODULE:answer(valeu=1)", 2, "answer takes settings: value, more (missing a required argument: "),
        ("MODULE:slips(1)", 2, "slips takes no settings: write MODULE:slips\n"),
        (
            "MODULE:slips",
            1,
            "MODULE:slips failed: TypeError: Asm.goto() missing 1 required positional argument",
        ),
        ("MODULE:answer(open('x'))", 2, "neither a name nor a call with constants"),
        ("MODULE:", 2, "neither a name nor a call with constants"),
        ("MODULE:1 + 1", 2, "neither a name nor a call with constants"),
        ("MODULE:" + "(" * 100, 2, "neither a name nor a call with constants"),
        ("MODULE:number", 1, "is of type int, not a program"),
        ("MODULE:fails", 1, "failed: ZeroDivisionError: division by zero (MODULE:35)"),
        ("MODULE:wrong", 1, "some_programs.py:14: r10 is the frame pointer and can't be changed"),
        ("no.such.module:x", 1, "there is no module 'no.such.module'"),
        ("no/such/file.py:x", 1, "there is no file no/such/file.py"),
        ("no/such/file.s", 1, "no/such/file.s: No such file or directory"),
        ("no/such:x", 1, "there is no file no/such:x"),
        (".", 1, "Is a directory"),
    ],
)
def test_errors(
    target: str, status: int, message: str, module: str, capfd: pytest.CaptureFixture[str]
) -> None:
    err = fails(["dis", target.replace("MODULE", module)], status, capfd)
    assert message.replace("MODULE", module) in err


def test_errors_in_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.s"
    path.write_text("exit\nr1 = r11\n")
    assert f"{path}:2:6: register r11 does not exist" in fails(["asm", str(path)], 1, capfd)
    path.write_bytes(b"")
    assert "has no instructions" in fails(["asm", str(path)], 1, capfd)
    path.write_bytes(b"\0" * 8)
    assert "byte 0: opcode 0x00 does not exist" in fails(["dis", str(path)], 1, capfd)
    path.write_text("goto +5")
    assert "slot 0: goto pc+5 goes to slot 6" in fails(["cfg", str(path)], 1, capfd)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    assert "ModuleNotFoundError: No module named 'nothing_of_this_name'" in fails(
        ["dis", f"{broken}:x"], 1, capfd
    )
    broken.write_text("from pybpfasm import *\n\nm = MapSpec('two words', MapType.HASH, U32(), U32(), 1)\n")
    assert f"{broken}:3: map name 'two words'" in fails(["dis", f"{broken}:x"], 1, capfd)
    broken.write_text("from pybpfasm import *\nclass S(Struct):\n    a = U32\n")
    assert f"{broken}:2: S.a is a class: a = U32()" in fails(["dis", f"{broken}:x"], 1, capfd)
    broken.write_text("def f(:\n")
    assert "SyntaxError" in fails(["dis", f"{broken}:x"], 1, capfd)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "no command was given\n  known are asm, dis, cfg, elf, check, run; see --help"),
        ("frob", "there is no command 'frob'; known are asm, dis, "),
        ("chek f.s", "there is no command 'chek'; did you mean 'check'?\n  `python -m pybpfasm --help`"),
        ("asm", "the following arguments are required: target\n  `python -m pybpfasm asm --help`"),
        ("asm f.s --format y", "--format: 'y' is none of bin, hex\n"),
        ("asm --fromat hex f.s", "there is no option --fromat; did you mean --format?\n"),
        ("asm --form hex f.s", "there is no option --form; did you mean --format?\n"),
        ("asm -f hex f.s", "there is no option -f; did you mean --format?\n"),
        ("asm --targett v3 f.s", "there is no option --targett; did you mean --target?\n"),
        ("asm f.s -x", "there is no option -x\n"),
        ("asm f.s more", "'more' is not understood\n  `python -m pybpfasm asm --help`"),
        ("dis f.s --no-lines=3", "--no-lines takes no value, and '3' was given\n"),
        ("dis f.s --target", "--target: expected one argument\n"),
        ("run f.s --hex 00 --pcap f", "--pcap and --hex cannot both be given\n"),
        (
            "--target v3 dis f.s",
            "--target stands before the command\n  write `python -m pybpfasm dis --target …`",
        ),
        ("--json elf f.o", "--json stands before the command\n  write `python -m pybpfasm elf --json …`"),
        ("elf", "the following arguments are required: target\n  `python -m pybpfasm elf --help`"),
        ("elf f.o --jsn", "there is no option --jsn; did you mean --json?\n"),
        ("check f.s --colour never", "there is no option --colour; did you mean --color?\n"),
        ("check", "the following arguments are required: TARGET\n  `python -m pybpfasm check --help`"),
    ],
)
def test_usage_errors(words: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In the form of the loader's: what was wrong, and in a second line what to do."""
    err = fails(words.split(), 2, capfd)
    assert err.startswith(f"error: {says}")
    assert len(err.splitlines()) == 2


def test_an_empty_name_is_no_directory(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["asm", text], ["cfg", text], ["elf", text]):
        assert fails([*words, "-o", ""], 2, capfd).startswith("error: -o needs the name of a file\n  ")


def test_text_has_no_type_to_write_into_an_object(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    err = fails(["elf", text, "-o", f"{text}.o"], 2, capfd)
    assert err.startswith(
        f"error: {text} has no program type, which an object must say\n  name a program in "
    )
    assert not Path(f"{text}.o").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("package", ["loader", "pybpfasm"])
@pytest.mark.parametrize("command", ["--help", "elf --help", "check --help", "asm --help", "--version"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_help_that_cannot_be_written_is_a_failure(package: str, command: str, unbuffered: str) -> None:
    words = ["dump" if package == "loader" and len(word) < 6 else word for word in command.split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", package, *words],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "No space left on device" in done.stderr


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capfd.readouterr().out
    for words in ("asm", "dis", "cfg", "elf", "check", "run", "file.py:program(8000)"):
        assert words in out


def test_as_a_process(text: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pybpfasm", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)

    done = run("dis", text)
    assert (done.returncode, done.stderr) == (0, "")
    assert run("dis", "nothing").returncode == 1
    assert run().returncode == 2
    # A reader that goes away is no error to report.
    long = Path(text).with_name("long.bin")
    long.write_bytes(encode(assemble("exit")) * 20000)
    command = [sys.executable, "-m", "pybpfasm", "dis", str(long)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


ACCENTS = """
from pybpfasm.program import sched_cls

@sched_cls(name="wrong")
def wrong(b, ctx):
    b.r6 = 1  # \u00e9 \u2192 \u6f22
    b.r0 = b.u8[b.r6 + 5]  # \u00e9 \u2192 \u6f22
    b.exit()
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("command", ["dis", "check", "run --trace", "elf --listing"])
def test_what_the_encoding_does_not_have(command: str, encoding: str, tmp_path: Path) -> None:
    """Lines of Python are printed with what is in them."""
    path = tmp_path / "accents.py"
    path.write_text(ACCENTS, encoding="utf-8")
    assert main(["elf", f"{path}:wrong", "-o", str(tmp_path / "accents.o")]) == 0
    target = str(tmp_path / "accents.o") if command.startswith("elf") else f"{path}:wrong"
    done = subprocess.run(
        [sys.executable, "-m", "pybpfasm", *command.split(), target],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert b"Traceback" not in done.stderr
    shown = {"ascii": "? -> ?", "latin-1": "\u00e9 -> ?", "utf-8": "\u00e9 \u2192 \u6f22"}[encoding]
    assert f"b.r0 = b.u8[b.r6 + 5]  # {shown}".encode(encoding) in done.stdout


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("command", ["dis", "check", "run --trace", "run --step", "asm", "cfg", "elf"])
def test_closed_streams(command: str, closed: tuple[int, ...], module: str) -> None:
    target = "/no/such" if command == "elf" else f"{module}:made"
    words = [sys.executable, "-m", "pybpfasm", *command.split(), target]
    code = f"import os; [os.close(fd) for fd in {closed}]; os.execv({sys.executable!r}, {words!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert done.returncode == (1 if command == "elf" else 0)
    assert b"Traceback" not in done.stderr


def test_an_error_says_which_file_it_is_in(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "code.bin"
    code.write_bytes(bytes.fromhex("82 00 00 00 00 00 00 00"))
    for command in ("dis", "check", "cfg", "asm", "run"):
        assert main([command, str(code)]) == 1
        assert f"{code}: byte 0: opcode 0x82 does not exist" in capfd.readouterr().err, command
    broken = tmp_path / "broken.o"
    broken.write_bytes(b"\x7fELF" + bytes(100))
    for command in ("dis", "check", "cfg", "elf"):
        assert main([command, str(broken)]) == 1
        assert f"{broken}: byte 4: an ELF file of class 0" in capfd.readouterr().err, command
    assert main(["dis", f"{broken}:name"]) == 1
    assert f"{broken}: byte 4" in capfd.readouterr().err
    assert main(["dis", ""]) == 2
    assert "an empty name" in capfd.readouterr().err
