"""What the parent and its workers tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.catalog.schema import Profile, Variant
from gateway.catalog.store import Catalog
from gateway.domain import Trust
from gateway.monitoring.sequential_tests import Found
from gateway.settings import Settings

Admissions = Mapping[str, tuple[Variant, ...]]  # by model server, of several


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker begins with."""

    settings: Settings  # of this worker: its part of each limit
    triton: str | None  # host:port of the parent's own Triton
    engine: str


@dataclass(frozen=True, slots=True)
class Published:
    """A serving set that the parent checked, without what each process has of its own."""

    number: int
    catalog: Catalog
    trust: Mapping[str, Trust]
    profiles: Mapping[str, Profile]
    problems: Mapping[str, str]
    under_load: frozenset[str]
    cores: int
    instances: Mapping[str, int]
    checked: bool  # the models were just checked: breakers close
    tests: Found
    admissions: Admissions
