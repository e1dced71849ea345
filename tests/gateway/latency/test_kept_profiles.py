"""Profiles that outlive the process which measured them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.latency.kept_profiles import NONE_KEPT, KeptProfiles
from gateway.settings import Settings
from tests.fakes import HOST, make_variant

VARIANT = make_variant("small", 5)
PROFILE = make_variant("small", 7).profile


def test_a_profile_is_found_again_by_model_and_host(tmp_path: Path) -> None:
    """Another file or another host has other latencies."""
    KeptProfiles(tmp_path / "new").keep(VARIANT, PROFILE)
    kept = KeptProfiles(tmp_path / "new")
    assert kept.of_model(VARIANT, HOST) == PROFILE
    assert kept.of_model(VARIANT, replace(HOST, cores=HOST.cores + 1)) is None
    assert kept.of_model(replace(VARIANT, sha256="b" * 64), HOST) is None


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"profile": {"host": 1}}'])
def test_a_damaged_file_is_not_kept(tmp_path: Path, text: bytes) -> None:
    """It is measured again and replaced; a start never fails for it."""
    kept = KeptProfiles(tmp_path)
    kept.keep(VARIANT, PROFILE)
    [file] = tmp_path.iterdir()
    file.write_bytes(text)
    assert kept.of_model(VARIANT, HOST) is None
    kept.keep(VARIANT, PROFILE)
    assert kept.of_model(VARIANT, HOST) == PROFILE


def test_a_profile_without_the_longest_texts_or_without_time_is_not_used(tmp_path: Path) -> None:
    """No latency could be predicted by it."""
    kept = KeptProfiles(tmp_path)
    for cells in (PROFILE.cells[:-1], tuple(replace(c, p50_ms=0.0) for c in PROFILE.cells)):
        kept.keep(VARIANT, replace(PROFILE, cells=cells))
        assert kept.of_model(VARIANT, HOST) is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    """A container may have a read-only file system."""
    (tmp_path / "file").write_text("")
    kept = KeptProfiles(tmp_path / "file")
    kept.keep(VARIANT, PROFILE)
    assert kept.of_model(VARIANT, HOST) is None
    NONE_KEPT.keep(VARIANT, PROFILE)
    assert NONE_KEPT.of_model(VARIANT, HOST) is None


def test_of_a_remote_triton_nothing_is_kept(tmp_path: Path) -> None:
    """The next one at its address may be another machine."""
    here = Settings(profiles_folder=str(tmp_path))
    KeptProfiles.of(here).keep(VARIANT, PROFILE)
    assert KeptProfiles.of(here).of_model(VARIANT, HOST) == PROFILE
    remote = Settings(profiles_folder=str(tmp_path), triton_url=("triton:8001",))
    for settings in (remote, Settings(profiles_folder="")):
        assert KeptProfiles.of(settings).of_model(VARIANT, HOST) is None
