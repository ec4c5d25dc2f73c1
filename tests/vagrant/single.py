# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""One machine: the server, with gateway and client in network namespaces. The tests are stages of one story.

`scripts/test-vagrant` runs them; a plain run of all tests does not collect them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.vagrant.machines import (
    CLIENT6,
    NOTHING,
    SERVER,
    SERVER6,
    Server,
    Traffic,
    destroyed,
    up,
    vagrant,
)

UNIT = "pybpfasm@default"
CONFIGURATION = "/etc/pybpfasm/default.conf"
OPTIONS = "--iface eth1 --ports 8000 --cgroup pybpfasm.slice --no-accelerate"
DROP_IN = "/etc/systemd/system/playground-application.service.d/proxy.conf"
UP = "sudo python -m loader up --iface eth1 --ports 8000"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The machine."""
    for _ in up("server"):
        yield Server("server")


@pytest.fixture(scope="module")
def traffic(server: Server) -> Traffic:
    """What the client asks for."""
    curl = "client curl --silent --show-error --fail --max-time 60"
    return Traffic(server, lambda path, host: server.run(f"{curl} 'http://{host}:8000{path}'"))


# --- the machine --------------------------------------------------------------------------------------------


def test_the_machine_is_a_real_one(server: Server) -> None:
    """Debian's kernel, systemd as its first process, one cgroup hierarchy, a bpf file system of systemd's."""
    assert server.run("uname -r").startswith("6.1.")
    assert server.run("cat /proc/1/comm") == "systemd\n"
    assert server.run("findmnt -n -o FSTYPE /sys/fs/cgroup") == "cgroup2\n"
    assert server.root("findmnt -n -o FSTYPE /sys/fs/bpf") == "bpf\n"
    assert server.run("systemctl --failed --plain --no-legend") == ""


def test_before_up_the_client_talks_to_the_application(server: Server, traffic: Traffic) -> None:
    """Nothing of ours is in the kernel, and Envoy sees nothing."""
    assert server.ours() == NOTHING
    traffic.direct("/?before")


# --- the tutorial -------------------------------------------------------------------------------------------


def test_the_commands_of_the_tutorial(server: Server) -> None:
    """`up` on the server, curl on the client, and Envoy's access log as the proof, as people type it."""
    said = vagrant("ssh", "server", "-c", UP)
    assert "instance 'default' is up" in said
    answer = vagrant("ssh", "server", "-c", f"client curl http://{SERVER}:8000/?typed")
    assert "application of the playground" in answer
    assert server.logged("/?typed")["response_code"] == 200


def test_both_families_go_through_envoy(server: Server, traffic: Traffic) -> None:
    """The application sees Envoy, Envoy sees the client."""
    traffic.proxied("/?four")
    traffic.proxied("/?six", SERVER6, CLIENT6)


def test_other_tools_see_what_is_attached(server: Server) -> None:
    """tc and bpftool name our programs where `status` says they are: by clsact, for 6.1 has no TCX."""
    status = json.loads(server.run("sudo python -m loader status --json"))
    hooks = {hook["hook"]: hook["program"]["name"] for hook in status["hooks"]}
    for direction in ("ingress", "egress"):
        assert f" {hooks[direction]} " in server.root(f"tc filter show dev eth1 {direction}").replace(
            ":", " "
        )
    attached = {one["name"] for one in json.loads(server.root("bpftool -j cgroup show /sys/fs/cgroup"))}
    assert hooks["getsockopt"] in attached


def test_a_reboot_takes_everything_away_and_up_works_again(server: Server, traffic: Traffic) -> None:
    """Without the unit nothing comes back by itself."""
    assert server.ours() != NOTHING
    server.reboot()
    assert server.ours() == NOTHING
    traffic.direct("/?after-reboot")
    vagrant("ssh", "server", "-c", UP)
    traffic.proxied("/?up-again")
    server.run("sudo python -m loader down")
    assert server.ours() == NOTHING


# --- the units ----------------------------------------------------------------------------------------------


def test_the_units_are_sound(server: Server) -> None:
    """systemd finds nothing to say about them, and little that they could do without."""
    units = f"{UNIT}.service pybpfasm-envoy.service pybpfasm.slice"
    # No manual pages are installed on this machine, and no `man`.
    said = server.root(f"SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no {units} 2>&1")
    assert said == ""
    for unit, most in ((f"{UNIT}.service", 2.5), ("pybpfasm-envoy.service", 1.5)):
        rows = json.loads(server.root(f"systemd-analyze security --json=short {unit}"))
        exposure = server.root(f"systemd-analyze security --no-pager {unit} | tail -1")
        assert rows and float(exposure.split("level for ")[1].split()[1]) <= most, exposure


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "required: --iface, --ports"),
        ("--iface eth1 --ports 8000,x", "--ports"),
        ("--iface eth1 --ports 8000 --cgroup nowhere", "nowhere"),
    ],
)
def test_what_is_wrong_stands_in_the_journal(server: Server, options: str, words: str) -> None:
    """A start with a wrong configuration fails, says why, and changes nothing."""
    server.write(CONFIGURATION, f'OPTIONS="{options}"\n')
    server.refuses(f"systemctl start {UNIT}")
    said = server.journal(UNIT, "--lines 12")
    assert any(line.startswith("error: ") and words in line for line in said), said
    assert not any("Traceback" in line for line in said)
    assert server.ours() == NOTHING


def test_an_instance_without_a_file(server: Server) -> None:
    """systemd names the file that is missing."""
    server.refuses("systemctl start pybpfasm@other")
    said = " ".join(server.journal("pybpfasm@other"))
    assert "Failed to load environment files: No such file" in said, said


PROBE = f"""
import json, socket, time
events = []
begin, answered = time.monotonic(), 0
while answered < 4 and time.monotonic() - begin < 300:
    number = len(events)
    try:
        with socket.create_connection(("{SERVER}", 8000), timeout=20) as connection:
            connection.settimeout(60)
            connection.sendall(f"GET /?boot{{number}} HTTP/1.0\\r\\nHost: server\\r\\n\\r\\n".encode())
            status = int(connection.makefile("rb").readline().split()[1])
    except (OSError, IndexError) as error:
        events.append((time.monotonic(), number, None))
        time.sleep(0.05)
        continue
    events.append((time.monotonic(), number, status))
    answered += status == 200
    time.sleep(0.05)
json.dump(events, open("/var/tmp/probe.json", "w"))
"""

PROBE_UNIT = """
[Unit]
After=playground-network.service
[Service]
ExecStart=/usr/sbin/ip netns exec client /usr/bin/python3 /var/tmp/probe.py
[Install]
WantedBy=multi-user.target
"""


def test_after_a_boot_no_request_gets_past_envoy(server: Server) -> None:
    """A client that asks from early on is refused until the proxy is there, and then goes through Envoy."""
    server.write(CONFIGURATION, f'OPTIONS="{OPTIONS}"\n')
    server.write(DROP_IN, f"[Unit]\nRequires={UNIT}.service\nAfter={UNIT}.service\n")
    server.write("/var/tmp/probe.py", PROBE)
    server.write("/etc/systemd/system/probe.service", PROBE_UNIT)
    server.root(f"systemctl daemon-reload && systemctl enable {UNIT} probe")
    server.reboot()
    server.root("while systemctl --quiet is-active probe; do sleep 1; done")
    events = json.loads(server.root("cat /var/tmp/probe.json"))
    server.root("systemctl --quiet disable probe")

    answered = [(when, f"/?boot{number}", status) for when, number, status in events if status is not None]
    good = [path for _, path, status in answered if status == 200]
    assert events[0][2] is None, "the client began too late to show anything"
    assert len(good) == 4
    server.logged(good[-1])
    logged = {entry["path"]: entry["response_code"] for entry in server.access_log()}
    assert {path: status for _, path, status in answered} == {p: logged.get(p) for _, p, _ in answered}
    assert [server.served(path) for path in good] == [[SERVER]] * 4

    # By systemd's own clock, which is the one that the client looked at.
    (proxy,) = server.properties(UNIT, "ActiveEnterTimestampMonotonic")
    (envoy,) = server.properties("pybpfasm-envoy", "ExecMainStartTimestampMonotonic")
    (application,) = server.properties("playground-application", "ExecMainStartTimestampMonotonic")
    assert 0 < int(envoy) < int(proxy) <= int(application)
    first = next(when for when, _, status in events if status == 200)
    assert int(application) < first * 1e6


def test_status_of_the_unit(server: Server) -> None:
    """It is active without a process, and the instance is what the file says."""
    assert server.properties(UNIT, "ActiveState", "SubState", "MainPID") == ["active", "exited", "0"]
    settings = json.loads(server.root("pybpfasm-loader status --json"))["settings"]
    assert settings["cgroup"] == "/sys/fs/cgroup/pybpfasm.slice"
    assert settings["ports"] == "8000"
    attached = json.loads(server.root("bpftool -j cgroup show /sys/fs/cgroup/pybpfasm.slice"))
    assert [one["name"] for one in attached] == ["pba_getsockopt"]


KEPT = f"""
import http.client, json, sys
connection = http.client.HTTPConnection("{SERVER}", 8000, timeout=60)
for line in sys.stdin:
    connection.request("GET", line.strip())
    answer = connection.getresponse()
    answer.read()
    print(json.dumps([answer.status, connection.sock.getsockname()[1]]), flush=True)
"""


def test_reload_keeps_connections(server: Server) -> None:
    """One connection of the client goes on while the ports change under it."""
    server.write("/var/tmp/kept.py", KEPT)
    server.run("rm -f /tmp/ask; mkfifo /tmp/ask")
    server.run(
        "nohup client python3 -u /var/tmp/kept.py </tmp/ask >/tmp/kept.out 2>/tmp/kept.err & "
        "nohup sh -c 'exec sleep 3600 >/tmp/ask' >/dev/null 2>&1 & echo $! >/tmp/holder"
    )

    def ask(path: str, count: int) -> list[list[int]]:
        server.run(
            f"echo '{path}' >/tmp/ask; until [ $(wc -l </tmp/kept.out) = {count} ]; do sleep 0.2; done"
        )
        return [json.loads(line) for line in server.run("cat /tmp/kept.out").splitlines()]

    try:
        ask("/?kept1", 1)
        server.write(CONFIGURATION, f'OPTIONS="{OPTIONS.replace("8000", "8000,9000")}"\n')
        server.root(f"systemctl reload {UNIT}")
        assert json.loads(server.root("pybpfasm-loader status --json"))["settings"]["ports"] == "8000,9000"
        answers = ask("/?kept2", 2)
    finally:
        server.run("kill $(cat /tmp/holder)")
    assert [status for status, _ in answers] == [200, 200]
    assert answers[0][1] == answers[1][1], "the client had to connect anew"
    assert server.logged("/?kept1")["downstream_remote"] == server.logged("/?kept2")["downstream_remote"]


def test_a_reload_that_fails_changes_nothing(server: Server, traffic: Traffic) -> None:
    """The proxy goes on as it was, the journal says why."""
    before = server.ours()
    server.write(CONFIGURATION, 'OPTIONS="--iface eth7 --ports 8000"\n')
    server.refuses(f"systemctl reload {UNIT}")
    said = server.journal(UNIT, "--lines 8")
    assert any(line.startswith("error: there is no interface 'eth7'") for line in said), said
    assert server.properties(UNIT, "ActiveState") == ["active"]
    assert server.ours() == before
    traffic.proxied("/?after-failure")


def test_envoy_may_be_killed(server: Server, traffic: Traffic) -> None:
    """systemd starts it again, in the same slice, so that the hook on the cgroup still knows it."""
    (before,) = server.properties("pybpfasm-envoy", "MainPID")
    server.root(f"kill -KILL {before}")
    server.root("until curl --silent --output /dev/null http://127.0.0.1:9901/ready; do sleep 0.5; done")
    assert server.properties("pybpfasm-envoy", "MainPID") != [before]
    traffic.proxied("/?envoy-again")


def test_stop_and_start(server: Server, traffic: Traffic) -> None:
    """Stopping the proxy stops the application that requires it; starting that brings both back."""
    server.write(CONFIGURATION, f'OPTIONS="{OPTIONS}"\nDOWN_OPTIONS="--drain 1"\n')
    server.root(f"systemctl stop {UNIT}")
    assert server.properties("playground-application", "ActiveState") == ["inactive"]
    assert server.ours() == NOTHING
    server.root("systemctl start playground-application")
    assert server.properties(UNIT, "ActiveState") == ["active"]
    server.root("until curl --silent --output /dev/null http://127.0.0.1:8000/; do sleep 0.5; done")
    traffic.proxied("/?started")


def test_acceleration_within_the_slice(server: Server, traffic: Traffic) -> None:
    """By itself only where the kernel does it right, which the journal says; or where somebody insists."""
    drop_in = "/etc/systemd/system/playground-application.service.d/slice.conf"
    server.write(drop_in, "[Service]\nSlice=pybpfasm.slice\n")
    server.root("systemctl daemon-reload && systemctl restart playground-application")
    server.root("until curl --silent --output /dev/null http://127.0.0.1:8000/; do sleep 0.5; done")
    for when in ("auto", "always"):
        options = OPTIONS.replace("--no-accelerate", f"--accelerate {when}")
        server.write(CONFIGURATION, f'OPTIONS="{options}"\n')
        server.root(f"systemctl reload {UNIT}")
        traffic.proxied(f"/?accelerate-{when}")
        status = json.loads(server.root("pybpfasm-loader status --json"))
        if status["settings"]["accelerate"]:
            assert status["counters"]["sockops"]["enrolled_active"] >= 1
            assert status["counters"]["sockops"]["enrolled_passive"] >= 1
        else:
            assert when == "auto"
            said = server.journal(UNIT, "--lines 20")
            assert any(line.startswith("warning: connections are not accelerated: ") for line in said), said


# --- the end ------------------------------------------------------------------------------------------------


def test_what_is_installed_can_be_removed(server: Server) -> None:
    """Not under a running instance; then all of it goes, but for files that the administrator changed."""
    assert "instance default is up" in server.refuses("/vagrant/scripts/install --remove")
    server.root("systemctl stop playground-application")
    server.root(f"systemctl disable --now {UNIT} pybpfasm-envoy")
    said = server.root("/vagrant/scripts/install --remove 2>&1")
    assert f"{CONFIGURATION} was changed" in said and "envoy.yaml was changed" not in said
    left = server.root("find /etc /usr /var /run -xdev -name '*pybpfasm*'").split()
    assert [path for path in left if "/journal/" not in path] == ["/etc/pybpfasm"]
    assert server.root("ls /etc/pybpfasm") == "default.conf\n"
    assert server.ours() == NOTHING


def test_destroy_leaves_nothing(server: Server) -> None:
    """No machine, no disk of it, no network of ours."""
    vagrant("destroy", "--force")
    destroyed("server")
