"""Which of several model servers gets a request."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.backends.choosing import least_busy


@dataclass(frozen=True)
class Server:
    """A server with some work."""

    name: str
    work_ms: float


def test_the_least_busy_server_is_chosen_whoevers_turn_it_is() -> None:
    """Work decides first."""
    servers = [Server("a", 5.0), Server("b", 1.0), Server("c", 3.0)]
    assert {least_busy(servers, turn).name for turn in range(6)} == {"b"}


def test_equally_busy_servers_are_chosen_in_turn() -> None:
    """An idle fleet is used evenly, and so is the part of it that is the least busy."""
    idle = [Server("a", 0.0), Server("b", 0.0), Server("c", 0.0)]
    assert [least_busy(idle, turn).name for turn in range(4)] == ["a", "b", "c", "a"]
    two = [Server("a", 1.0), Server("b", 9.0), Server("c", 1.0)]
    assert {least_busy(two, turn).name for turn in range(3)} == {"a", "c"}
