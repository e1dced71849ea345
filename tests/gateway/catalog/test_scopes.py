"""Which scope's floors and losses requests are routed by."""

from __future__ import annotations

from dataclasses import replace

from gateway.catalog.schema import FloorScope, Paired, Plan, ScopeLoss, Stratum
from gateway.catalog.scopes import in_scope
from gateway.catalog.store import Catalog
from gateway.domain import Size
from gateway.lifecycle.readiness import summary
from gateway.routing import explain
from gateway.serving_set import ServingSet
from tests.fakes import serving_set, small_and_large

SCOPES = (Stratum("all clusters", 90, 300, 0.75, 0.70), Stratum("unseen", 20, 80, 0.72, 0.52))
LOSSES = (ScopeLoss("all clusters", 0.04), ScopeLoss("unseen", 0.31))


def certified(plan: Plan, losses: tuple[ScopeLoss, ...] = LOSSES) -> Plan:
    """Return the plan with a certificate of two scopes; the lower one counts."""
    paired = Paired("large", 0.31, 0.03, scopes=losses)
    of_scopes = replace(plan.certificate, floor=0.52, f1=0.75, scopes=SCOPES, paired=paired)
    return replace(plan, certificate=of_scopes)


def catalog() -> Catalog:
    found = small_and_large()
    return replace(found, plans=tuple(certified(plan) for plan in found.plans))


def points(catalog: Catalog) -> set[tuple[float, float | None]]:
    return {(plan.certified_f1, plan.certified_loss) for plan in catalog.plans}


def test_the_lower_scope_counts_unless_all_is_asked_for() -> None:
    """A caller's articles are unseen ones, as far as anybody knows."""
    assert in_scope(catalog(), FloorScope.LOWER) == catalog()
    assert points(catalog()) == {(0.52, 0.31)}
    assert points(in_scope(catalog(), FloorScope.ALL)) == {(0.70, 0.04)}


def test_what_has_one_scope_stays_as_it_is() -> None:
    """Early catalogs have no scopes, and no loss of each scope."""
    early = small_and_large()
    assert in_scope(early, FloorScope.ALL) == early
    plans = tuple(certified(plan, losses=()) for plan in early.plans)
    assert points(in_scope(replace(early, plans=plans), FloorScope.ALL)) == {(0.70, 0.31)}


def test_every_view_names_the_scope() -> None:
    """A floor of .70 that is said of fewer texts than one expects would mislead."""
    lower, whole = (serving_set(in_scope(catalog(), scope)) for scope in FloorScope)
    assert "all clusters" not in summary(lower)
    assert "floors of all clusters, not only of unseen articles" in summary(whole)
    assert [_scope(each) for each in (lower, whole)] == ["lower", "all"]


def _scope(serving: ServingSet) -> str:
    (option, *_) = serving.options(Size(64, 1), 0.95, 0.0)
    return str(explain.describe_option(option)["floor_scope"])
