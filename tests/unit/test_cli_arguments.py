# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The command line where it needs no kernel: what it understands, and what it says to what it does not."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loader import cli
from pybpfasm import cli as pybpfasm_cli

ROOT = Path(__file__).resolve().parents[2]
UP = ["up", "--iface", "eth0", "--ports", "8000"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the loader is for Linux")


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no command was given"),
        (["updown"], "there is no command 'updown'; did you mean 'down'?"),
        (["frobnicate"], "there is no command 'frobnicate'; known are up, down, status"),
        (["up"], "the following arguments are required: --iface, --ports"),
        (["up", "--iface", "eth0"], "the following arguments are required: --ports"),
        (["up", "--ports", "8000"], "the following arguments are required: --iface"),
        (["up", "--ifaces", "eth0"], "there is no option --ifaces; did you mean --iface?"),
        ([*UP, "--no-acelerate"], "did you mean --no-accelerate?"),
        ([*UP, "--accelerate", "yes"], "'yes' is none of auto, always, never"),
        ([*UP, "--acc"], "there is no option --acc"),
        (["down", "--iface", "eth0"], "there is no option --iface"),
        (["down", "default"], "'default' is not understood; an instance is named with --name default"),
        ([*UP, "9000"], "'9000' is not understood\n"),
        (["-x"], "'-x' is not understood"),
        (["up", "-i", "eth0", "-p", "8000"], "there is no option -i; did you mean --iface"),
        (
            ["--name", "web", "down"],
            "--name stands before the command\n  write `python -m loader down --name",
        ),
        (["status", "--json=yes"], "--json takes no value, and 'yes' was given"),
        (
            ["up", "--ports", "8000", "9000", "--iface", "lo"],
            "'9000' is not understood\n  --ports takes one word, and may be repeated: --ports … --ports 9000",
        ),
        (
            ["up", "--ports", "8000", "--iface", "lo", "eth0"],
            "'eth0' is not understood\n  --iface takes one word, and may be repeated: --iface … --iface eth0",
        ),
        (
            ["run", "--iface", "lo", "--ports", "8000", "9000"],
            "'9000' is not understood\n  what is for Envoy",
        ),
        (["run", "--iface", "lo", "--ports", "8", "9", "--", "-l"], "'9' is not understood\n"),
        (["up", "--iface", "lo", "--ports", "8000", "--ports", "0"], "port 0 does not exist"),
        (
            ["up", "--iface", "lo", "--ports", "8" * 5000],
            "--ports: a number of thousands of digits is no port",
        ),
        (["up", "--iface"], "--iface: expected one argument"),
        (["up", "--iface", "eth0", "--ports", "70000"], "port 70000 does not exist"),
        (["up", "--iface", "eth0", "--ports", "0"], "port 0 does not exist"),
        (["up", "--iface", "eth0", "--ports", "80-20"], "range 80-20 is backwards"),
        (
            ["up", "--iface", "eth0", "--ports", "8000 9000-9010"],
            "'8000 9000-9010' is neither a port nor a range: write 8000, or 9000-9010\n"
            "  write --ports 8000,9000-9010, with a comma between two\n",
        ),
        (["up", "--iface", "eth0", "--ports", "8000,,8001,"], "\n  write --ports 8000,8001, with a comma"),
        (["up", "--iface", "eth0", "--ports", ""], "'' is neither a port nor a range"),
        (["up", "--iface", "eth0", "--ports", "http"], "'http' is neither a port nor a range"),
        (["up", "--iface", "eth0", "--ports", "8080"], "port 8080 is Envoy's own"),
        (["up", "--iface", "eth0", "--ports", "8000-9000"], "port 8080 is Envoy's own"),
        ([*UP, "--envoy-port", "8000"], "port 8000 is Envoy's own"),
        ([*UP, "--envoy-port", "http"], "--envoy-port 'http' is not a number"),
        ([*UP, "--envoy-port", "-1"], "--envoy-port"),
        ([*UP, "--mark", "0"], "a mark of 0"),
        ([*UP, "--mark", "0x10/0x1"], "outside its mask"),
        ([*UP, "--flow-capacity", "many"], "--flow-capacity 'many' is not a number"),
        ([*UP, "--flow-capacity", "4294967296"], "--flow-capacity 4294967296 is more than a map can hold"),
        ([*UP, "--flow-capacity", "9" * 5000], "is not a number that fits"),
        ([*UP, "--flow-capacity", "0"], "--flow-capacity 0 must be at least 1"),
        ([*UP, "--queue-limit", "0"], "--queue-limit 0 must be at least 1"),
        ([*UP, "--linger", "-5"], "--linger '-5' is not a number"),
        ([*UP, "--idle-timeout", "9999999999"], "--idle-timeout 9999999999 is more than can be waited for"),
        ([*UP, "--handshake-timeout", "1.5"], "--handshake-timeout '1.5' is not a number"),
        (["status", "--watch", "0"], "--watch takes a number of seconds above 0"),
        (["status", "--watch", "nan"], "--watch takes a number of seconds above 0"),
        (["status", "--watch", "inf"], "--watch takes a number of seconds above 0"),
        (["status", "--watch", "often"], "--watch: 'often' is no number\n"),
    ],
)
def test_usage_errors(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(words, capsys)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 2, "an error and what to do next"


@pytest.mark.parametrize(
    ("words", "accelerate", "insist"),
    [
        ([], True, False),
        (["--accelerate", "auto"], True, False),
        (["--accelerate", "always"], True, True),
        (["--accelerate", "never"], False, False),
        (["--no-accelerate"], False, False),
    ],
)
def test_whether_to_accelerate(words: list[str], accelerate: bool, insist: bool) -> None:
    parser, _ = cli._parser()
    request = cli._request(parser.parse_args([*UP, *words]))
    assert (request.settings.accelerate, request.insist) == (accelerate, insist)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: python -m loader {command}" in capsys.readouterr().out


def test_a_defect_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise KeyError("surprise")

    monkeypatch.setitem(cli.COMMANDS, "status", broken)
    status, out, err = run(["status"], capsys)
    assert (status, out) == (1, "")
    assert "internal error in python -m loader status: KeyError: 'surprise'" in err
    assert "python -m loader --debug status" in err
    assert "Traceback" not in err
    status, out, err = run(["--debug", "status"], capsys)
    assert (status, out) == (1, "")
    assert err.startswith("Traceback")
    assert "internal error" in err


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["up", "--json"], 2, "the following arguments are required: --iface, --ports"),
        (["up", "--iface", "lo", "--ports", "0", "--json"], 2, "port 0 does not exist"),
        (["up", "--iface", "nosuch0", "--ports", "80", "--json", "--dry-run"], 2, "there is no interface"),
        (["down", "--json", "--name", ".."], 2, "'..' cannot be the name of an instance"),
        (["status", "--json", "--bpffs", ""], 2, "'' is no bpf file system"),
        (["status", "--json", "--bpffs", "/nosuch"], 2, "/nosuch cannot be used as bpf file system"),
        (["doctor", "--json", "--nosuch"], 2, "there is no option --nosuch"),
        (["demo", "--json", "--nosuch"], 2, "there is no option --nosuch"),
    ],
)
def test_a_failure_is_json_as_well(
    words: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(words, capsys)
    assert found == status
    document = json.loads(out)
    assert document.keys() == {"error", "hint"}
    assert says in document["error"]
    assert err == f"error: {document['error']}\n  {document['hint']}\n"
    assert run([*words[:1], *(w for w in words[1:] if w != "--json")], capsys)[1] == ""


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ("--json status", "--json stands before the command", "write `python -m loader status --json …`"),
        (
            "status --json --prometheus",
            "--prometheus and --json cannot both be given",
            "`python -m loader status --help` shows what can be said",
        ),
    ],
)
def test_json_where_it_does_not_belong(
    words: str, error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(words.split(), capsys)
    assert (status, json.loads(out)) == (2, {"error": error, "hint": hint})


def test_json_for_envoy_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "--iface", "nosuch0", "--", "--json", "--debug"], capsys)[1] == ""


def test_a_usage_error_is_one_with_debug_too(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(["--debug", "up"], capsys)
    assert status == 2
    assert err.startswith("Traceback")


def test_ports_may_be_repeated() -> None:
    parser, _ = cli._parser()
    request = cli._request(parser.parse_args([*UP, "--ports", "9000,80-90"]))
    assert str(request.settings.ports) == "80-90,8000,9000"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (cli.main, pybpfasm_cli.main):
        try:
            status: object = main(["--version"])
        except SystemExit as stop:
            status = stop.code
        assert status == 0
        assert re.fullmatch(
            r"pybpfasm (\d+\.\d+\.\d+\S*|\(not installed\)), Python 3\.\d+\.\d+\S*, \w+ .*\n",
            capsys.readouterr().out,
        )


@pytest.mark.parametrize("name", ["pybpfasm-loader", "python -m loader"])
def test_what_to_type_is_what_was_typed(name: str, tmp_path: Path) -> None:
    script = tmp_path / "pybpfasm-loader"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from loader.cli import main; sys.exit(main())"
    )
    command = ["-m", "loader"] if name.startswith("python") else [str(script)]
    outcome = subprocess.run([sys.executable, *command, "up"], cwd=ROOT, capture_output=True, text=True)
    assert f"`{name} up --help` shows what can be said" in outcome.stderr


@pytest.mark.parametrize("package", ["loader", "pybpfasm"])
def test_ctrl_c_while_it_starts_is_no_traceback(package: str) -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "class Press:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == '{package}.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"runpy.run_module('{package}', run_name='__main__')\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("package", ["loader", "pybpfasm"])
def test_a_python_that_is_too_old(package: str) -> None:
    code = (
        "import runpy, sys\n"
        "sys.version_info = (3, 10, 12, 'final', 0)\n"
        f"runpy.run_module('{package}', run_name='__main__')\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"error: Python 3.11 or newer is needed, and {sys.executable} is 3.10\n")
    assert len(outcome.stderr.splitlines()) == 2
    # An old one gets that far.
    for path in (f"{package}/__main__.py", "pybpfasm/__init__.py", "pybpfasm/quiet.py", "loader/__init__.py"):
        ast.parse((ROOT / path).read_text(encoding="utf-8"), feature_version=(3, 7))


def test_no_standard_error_is_not_standard_output() -> None:
    code = "import os, sys; os.close(2); os.execv(sys.executable, [sys.executable, '-m', 'loader', 'up'])"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert (outcome.returncode, outcome.stdout) == (2, b"")


@pytest.mark.parametrize(("terminal", "clears"), [("xterm", True), ("dumb", False), (None, False)])
def test_watch_clears_a_terminal_that_can(
    terminal: str | None,
    clears: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if terminal is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", terminal)

    def once(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_status_once", once)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, _ = run(["status", "--watch"], capsys)
    assert (status, "\x1b" in out) == (130, clears)


def test_interruption_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "status", interrupted)
    assert run(["status"], capsys) == (130, "", "interrupted\n")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "loader", "up", "--help"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_the_way_to_up_imports_nothing_slow() -> None:
    """What other commands import, tens of ms each."""
    code = (
        "import sys, loader.cli, loader.up, loader.down, loader.modes.rewrite;"
        "slow = ('rich', 'pyroute2', 'elftools', 'prometheus_client', 'asyncio', 'subprocess');"
        "print([m for m in slow if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_takes_nothing_is_no_defect_of_ours() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "loader", "--help"]
        outcome = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: the output cannot be written: No space left on device\n")
    assert "Exception ignored" not in outcome.stderr


def test_an_encoding_without_arrows_is_enough() -> None:
    command = [sys.executable, "-m", "loader", "dump", "--iface", "lo", "--ports", "8000"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, env={"PYTHONIOENCODING": "ascii"})
    assert b"Unicode" not in outcome.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_verdict_is_seen_in_every_encoding(encoding: str) -> None:
    code = (
        "from loader import cli, health\n"
        "cli.COMMANDS['status'] = lambda arguments: print(*health.SIGNS.values(), '8000 → 8080', '漢') or 0\n"
        "cli.main(['status'])"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env={"PYTHONIOENCODING": encoding}
    )
    assert (outcome.stdout, outcome.stderr) == (b"+ ! x 8000 -> 8080 ?\n", b"")


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", lambda arguments: __import__("rich").error)
    monkeypatch.setitem(sys.modules, "rich", None)
    status, out, err = run(["doctor"], capsys)
    assert (status, out) == (1, "")
    assert err.startswith("error: the Python package 'rich' is missing\n")
