"""A system that does not come up is reported with its own last words."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from loadtest.stack import StackError, free_ports, fresh_stack


def test_a_stack_that_does_not_come_up_says_the_end_of_its_log(tmp_path: Path) -> None:
    """The log lies in a folder that is gone by then; its end is all that is left to debug with."""
    missing = tmp_path / "no-models"
    with pytest.raises(StackError, match="the end of its log") as caught, fresh_stack(missing):
        pytest.fail("a gateway without models got ready")
    assert f"{missing}: no such folder" in str(caught.value)


def test_free_ports_differ_and_can_be_bound() -> None:
    """Five servers are started on them at once."""
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
