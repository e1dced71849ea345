"""What the parent and its workers tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.catalog.schema import Profile, Variant
from gateway.catalog.store import Catalog
from gateway.domain import Trust
from gateway.monitoring.rollout_tests import Verdict
from gateway.monitoring.sequential_tests import Found
from gateway.settings import Settings
from gateway.slo import SloClass

Admissions = Mapping[str, tuple[Variant, ...]]  # by model server, of several


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker begins with."""

    settings: Settings  # of this worker: its part of each limit
    triton: str | None  # host:port of the parent's own Triton
    engine: str
    secret: bytes  # that the words of remembered answers are hashed with


@dataclass(frozen=True, slots=True)
class CheckedSet:
    """A serving set that the parent checked, without what each process has of its own."""

    number: int
    catalog: Catalog
    trust: Mapping[str, Trust]
    profiles: Mapping[str, Profile]
    problems: Mapping[str, str]
    under_load: frozenset[str]
    cores: float
    instances: Mapping[str, int]
    checked: bool  # the models were just checked: breakers close


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate that is tried, without its tests: those are the parent's."""

    number: int  # of its tests: a candidate that is tried again has others
    sha256: str
    share: float
    shadow: bool
    verdict: Verdict
    serving: CheckedSet | None  # None: the current one
    classes: Mapping[str, SloClass]


@dataclass(frozen=True, slots=True)
class Published:
    """All that the workers serve from now on."""

    number: int
    current: CheckedSet
    candidate: Tried | None
    classes: Mapping[str, SloClass]
    tests: Found
    admissions: Admissions
