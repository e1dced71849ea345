"""deploy/bertier.toml.example is a bertier.toml that works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from gateway import settings
from gateway.settings import Settings
from tests.fakes import ROOT

SAMPLE = (ROOT / "deploy" / "bertier.toml.example").read_text()
SETTING = re.compile(r"# (?=\w+ = |\[)")  # before a setting or a table that is commented out
LINES = [line for line in SAMPLE.splitlines() if SETTING.match(line)]


def as_toml(lines: list[str]) -> str:
    """Return the settings without their `#`."""
    return "\n".join(SETTING.sub("", line, count=1) for line in lines)


def test_it_sets_nothing_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who copies it first and reads it later runs with the defaults."""
    monkeypatch.chdir(tmp_path)
    Path("bertier.toml").write_text(SAMPLE)
    assert settings.read() == Settings()


def test_every_line_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that is refused is worse than none."""
    monkeypatch.chdir(tmp_path)
    Path("bertier.toml").write_text(as_toml(LINES))
    assert settings.read().classes["search"].latency_ms == 120


def test_what_is_no_example_is_the_default() -> None:
    """A reader takes the values for what holds without the file."""
    given = tomllib.loads(as_toml([line for line in LINES if "example" not in line]))
    assert len(given) >= 20
    for name, value in given.items():
        default = getattr(Settings(), name)
        assert value == (str(default) if isinstance(default, Path) else default), name
