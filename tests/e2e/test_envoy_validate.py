# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Envoy itself agrees with our files."""

from __future__ import annotations

from pathlib import Path

import pytest

from loader import envoy


@pytest.mark.parametrize("name", envoy.config_names())
def test_validate(name: str) -> None:
    envoy.validate(envoy.config_path(name))


@pytest.mark.parametrize("name", envoy.config_names())
def test_validate_rendered(name: str, tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    config.write_text(envoy.render(name, listener_port=15006, admin_port=15000, mark=7))
    envoy.validate(config)


def test_a_wrong_file_is_refused_in_envoys_words(tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    config.write_text(envoy.render("static").replace("type: STATIC", "type: ECSTATIC"))
    with pytest.raises(envoy.EnvoyError, match="ECSTATIC"):
        envoy.validate(config)


def test_an_envoy_that_does_not_start_says_why(tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    config.write_text("admin: [")
    with pytest.raises(envoy.EnvoyError, match="ended while starting"):
        envoy.Envoy(config, directory=tmp_path).start()
