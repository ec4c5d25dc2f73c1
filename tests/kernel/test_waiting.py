# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""`up --wait`: what is not there yet when a host starts."""

from __future__ import annotations

import socket
import threading
import time

from tests.kernel.instances import Site, add_dummy, site

__all__ = ["site"]


def test_up_waits_for_the_interface_and_for_envoy(site: Site) -> None:
    """Neither is there when it begins, and nothing is to be warned of when it ends."""
    began = threading.Event()
    sockets: list[socket.socket] = []

    def start_the_host() -> None:
        began.wait()
        time.sleep(0.3)
        add_dummy("late0")
        time.sleep(0.3)
        assert site.pins() == [], "up did not wait for Envoy"
        sockets.append(socket.create_server(("0.0.0.0", 8080)))

    thread = threading.Thread(target=start_the_host)
    thread.start()  # in the namespace of this thread
    began.set()
    outcome = site.up("--wait", "60", "--no-accelerate", iface="late0")
    thread.join()
    assert len(sockets) == 1
    sockets[0].close()
    assert outcome.err == ""


def test_waiting_has_an_end(site: Site) -> None:
    """Both things that are missing are named, and nothing was changed."""
    outcome = site.run("up", "--iface", "late0", "--ports", "8000", "--wait", "0.2")
    assert outcome.status == 1
    assert outcome.err.startswith(
        "error: still missing after 0.2 s: interface late0 and a listener on TCP port 8080, Envoy's\n"
    )
    assert site.pins() == []


def test_nothing_to_wait_for(site: Site) -> None:
    """What is there already is not waited for, and a second `up` finds all as it was."""
    with socket.create_server(("0.0.0.0", 8080)):
        assert site.up("--wait", "86400", "--no-accelerate").err == ""
        assert "was up like this already" in site.up("--wait", "86400", "--no-accelerate").out


def test_a_dry_run_does_not_wait(site: Site) -> None:
    """It shows what would be done now."""
    outcome = site.run("up", "--iface", "lo", "--ports", "8000", "--wait", "86400", "--dry-run")
    assert outcome.status == 0
