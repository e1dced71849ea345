"""How a gateway chooses one of its Tritons: by turns, by least work, or by the less busy of two.

Work is one of three views: the gateway's own work in flight; that and the others' work at the last poll; or all
work, an upper bound that no gateway knows. The gateway's own code chooses by least work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from random import Random

from gateway.backends.choosing import S, least_busy

Choose = Callable[[Sequence[S], int, Random], S]


class View(StrEnum):
    """What a gateway knows of a Triton's work."""

    OWN = "own"  # what it has in flight there
    POLLED = "polled"  # that, and what others had there before its last poll
    ALL = "all"  # all that is there now


class Rule(StrEnum):
    """How one of several is chosen."""

    TURNS = "turns"
    LEAST = "least"
    TWO = "two"


class Choice(StrEnum):
    """A rule, and what it looks at."""

    TURNS = "round robin"
    LEAST_OWN = "least of own"  # what the gateway does
    TWO_OWN = "two, own"
    LEAST_POLLED = "least, polled"
    TWO_POLLED = "two, polled"
    LEAST_ALL = "least of all"
    TWO_ALL = "two, all"

    @property
    def rule(self) -> Rule:
        return _OF[self][0]

    @property
    def view(self) -> View:
        return _OF[self][1]


_OF = {
    Choice.TURNS: (Rule.TURNS, View.OWN),
    Choice.LEAST_OWN: (Rule.LEAST, View.OWN),
    Choice.TWO_OWN: (Rule.TWO, View.OWN),
    Choice.LEAST_POLLED: (Rule.LEAST, View.POLLED),
    Choice.TWO_POLLED: (Rule.TWO, View.POLLED),
    Choice.LEAST_ALL: (Rule.LEAST, View.ALL),
    Choice.TWO_ALL: (Rule.TWO, View.ALL),
}
OURS = Choice.LEAST_OWN


def choose(rule: Rule, able: Sequence[S], turn: int, draw: Random) -> S:
    """Return one of the servers; `turn`: number of the request."""
    if rule is Rule.LEAST:
        return least_busy(able, turn)
    if rule is Rule.TWO:
        return less_busy_of_two(able, draw)
    return able[turn % len(able)]


def less_busy_of_two(able: Sequence[S], draw: Random) -> S:
    """Return the less busy of two different servers, drawn at random; the only one, where it is alone.

    Source: Mitzenmacher 2001, the power of two choices.
    """
    n = len(able)
    if n == 1:
        return able[0]
    first = int(draw.random() * n)
    second = (first + 1 + int(draw.random() * (n - 1))) % n
    one, other = able[first], able[second]
    return one if one.work_ms <= other.work_ms else other
