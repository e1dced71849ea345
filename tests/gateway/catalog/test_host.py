"""The description of this host: it decides which profiles and certificates hold here."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog import host


def write_tool(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_gpus_are_named(tmp_path: Path) -> None:
    """A profile of one GPU says nothing of another."""
    tool = write_tool(
        tmp_path, 'test "$1" = --query-gpu=name && echo NVIDIA H200 && echo NVIDIA L4'
    )
    assert host.gpu_names(tool) == "NVIDIA H200, NVIDIA L4"


@pytest.mark.parametrize("script", ["echo No devices were found; exit 6", "exit 0"])
def test_a_driver_without_a_gpu_names_none(tmp_path: Path, script: str) -> None:
    """Its error message is not the name of a GPU."""
    assert host.gpu_names(write_tool(tmp_path, script)) == ""


def test_a_host_without_the_tool_has_no_gpu(tmp_path: Path) -> None:
    """Most have none."""
    assert host.gpu_names(str(tmp_path / "nowhere")) == ""


def test_a_host_is_described_with_its_gpus() -> None:
    """All parts of the gateway and the optimizer say it alike."""
    assert host.describe("engine 1").gpu == host.gpu_names()
