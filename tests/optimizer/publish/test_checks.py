"""What may not be published, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.catalog.schema import Agreement, Profile, Variant
from gateway.catalog.store import Catalog
from optimizer.publish import checks
from optimizer.publish.publication import (
    NothingToPublish,
    check_constant,
    check_publishable,
    without_dominated,
    without_weak,
)
from tests.fakes import make_catalog, make_variant, with_loss


def of_size(variant: Variant, size_bytes: int) -> Variant:
    return replace(variant, size_bytes=size_bytes)


def at_384(variant: Variant, p95_ms: float) -> Variant:
    cells = [
        replace(c, p95_ms=p95_ms, p99_ms=max(p95_ms, c.p99_ms)) if c.bucket == 384 else c
        for c in variant.profile.cells
    ]
    return replace(variant, profile=replace(variant.profile, cells=tuple(cells)))


FAST, SLOW = make_variant("fast", 5), make_variant("slow", 20)


@pytest.mark.parametrize(
    ("variants", "floors", "expected"),
    [
        ([FAST, SLOW], [0.5, 0.7], {}),
        ([FAST, SLOW], [0.5, 0.5], {"slow": "fast"}),
        ([FAST, SLOW], [0.6, 0.5], {"slow": "fast"}),
        ([of_size(FAST, 30_000_000), SLOW], [0.6, 0.5], {}),
        ([at_384(FAST, 31.0), SLOW], [0.6, 0.5], {}),
        ([at_384(FAST, 30.0), SLOW], [0.6, 0.5], {"slow": "fast"}),
        ([FAST, make_variant("twin", 5)], [0.5, 0.5], {"twin": "fast"}),
        ([SLOW, FAST, make_variant("mid", 10)], [0.5, 0.6, 0.7], {"slow": "fast"}),
    ],
    ids=[
        "slower but better",
        "slower at the same floor",
        "worse in all",
        "smaller",
        "faster at 384 tokens",
        "as fast at 384 tokens",
        "equal in all: the first stays",
        "one of three",
    ],
)
def test_dominated_means_no_better_in_anything(
    variants: list[Variant], floors: list[float], expected: dict[str, str]
) -> None:
    """A variant that is better in nothing would never be chosen, and only takes room."""
    assert checks.dominated(make_catalog(variants, floors)) == expected


def test_a_dominated_variant_is_refused_by_name() -> None:
    """Who publishes must see which one, beaten by which, and how to publish it all the same."""
    catalog = make_catalog([FAST, SLOW], [0.6, 0.5])
    with pytest.raises(NothingToPublish, match=r"slow \(by fast\).*--allow-dominated"):
        check_publishable(catalog, None, allow_dominated=False)
    check_publishable(catalog, None, allow_dominated=True)


def test_a_dominated_member_of_the_pareto_front_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody named it, so nobody has to take it out; what was named stays for the gate to refuse."""
    catalog = make_catalog([FAST, SLOW, make_variant("slower", 30)], [0.6, 0.5, 0.4])
    left = without_dominated(catalog, {"slow", "fast"})
    assert [v.name for v in left.variants] == [p.name for p in left.plans] == ["fast", "slower"]
    assert "slow is not published: fast" in caplog.text
    with pytest.raises(NothingToPublish, match=r"slower \(by fast\)"):
        check_publishable(left, None, allow_dominated=False)


def test_a_variant_that_does_not_beat_no_answer_is_refused() -> None:
    """Always saying "no answer" costs nothing; what scores no more is no model."""
    catalog = make_catalog([FAST, SLOW], [0.5, 0.7])
    fast, slow = (
        replace(p, certificate=replace(p.certificate, constant_f1=0.521)) for p in catalog.plans
    )
    with pytest.raises(NothingToPublish, match=r"'no answer'.*: fast: F1 0\.5200.*0\.5210"):
        check_constant(replace(catalog, plans=(fast, slow)))
    check_constant(replace(catalog, plans=(slow, catalog.plans[0])))


def with_constant(catalog: Catalog, constant_f1: float) -> Catalog:
    plans = [
        replace(p, certificate=replace(p.certificate, constant_f1=constant_f1))
        for p in catalog.plans
    ]
    return replace(catalog, plans=tuple(plans))


def test_weak_variants_are_left_out_where_the_study_asks_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A study that a program chose names shapes before anybody knew how well they answer."""
    three = [FAST, SLOW, make_variant("slower", 30)]
    catalog = with_constant(make_catalog(three, [0.4, 0.6, 0.55]), 0.45)
    left = without_weak(catalog, allow_constant=False)
    assert [v.name for v in left.variants] == [p.name for p in left.plans] == ["slow"]
    assert "fast is not published: F1 0.420 is no better" in caplog.text
    assert "slower is not published: slow" in caplog.text
    tried = without_weak(catalog, allow_constant=True)
    assert [v.name for v in tried.variants] == ["fast", "slow"]


def test_where_every_variant_is_weak_none_is_left_out() -> None:
    """The check refuses them by name; an empty catalog would say nothing."""
    catalog = with_constant(make_catalog([FAST, SLOW], [0.3, 0.4]), 0.5)
    assert without_weak(catalog, allow_constant=False) == catalog
    with pytest.raises(NothingToPublish, match=r"fast: .*; slow: "):
        check_constant(catalog)


@pytest.mark.parametrize("min_floor", [0.71, 0.8])
def test_no_message_advises_to_raise_delta(min_floor: float) -> None:
    """Less confidence after a look at the floor is a floor chosen by its result."""
    catalog = make_catalog([FAST, SLOW], [0.5, 0.7])
    assert "delta" not in (checks.unmet(catalog, min_floor) or "")


def test_nothing_is_compared_to_a_member_that_was_left_out() -> None:
    """A gateway would ask a variant that it has not, and no certificate could be checked."""
    catalog = make_catalog([FAST, SLOW, make_variant("slower", 30)], [0.6, 0.5, 0.4])
    host = FAST.profile.host
    plans = []
    for plan, other in zip(catalog.plans, ("slow", "fast", "slow"), strict=True):
        expected = Agreement(other, 10, 20, 0.9, 0.8, 0.9, 0.8, host)
        plans.append(replace(with_loss(plan, 0.1, other), agreement=expected))
    left = without_dominated(replace(catalog, plans=tuple(plans)), {"slow"})
    fast, slower = left.plans
    assert (fast.agreement, fast.certificate.paired) == (None, None)
    assert (slower.agreement, slower.certificate.paired) == (None, None)
    kept = without_dominated(replace(catalog, plans=tuple(plans)), {"fast"})
    assert kept.plans[1].agreement is not None


def without_384() -> Catalog:
    profile = Profile(FAST.profile.host, 1, FAST.profile.cells[:2])
    return make_catalog([replace(FAST, profile=profile), SLOW], [0.5, 0.7])


def test_an_unprofiled_variant_is_never_published() -> None:
    """Its latency could not be promised, and no flag changes that."""
    assert checks.unprofiled(without_384()) == ["fast"]
    with pytest.raises(NothingToPublish, match="no latency at 128 and 384 tokens of fast"):
        check_publishable(without_384(), None, allow_dominated=True)


@pytest.mark.parametrize("min_floor", [None, 0.5, 0.7])
def test_a_floor_that_one_variant_reaches_is_met(min_floor: float | None) -> None:
    """The others are for requests that ask for less."""
    assert checks.unmet(make_catalog([FAST, SLOW], [0.5, 0.7]), min_floor) is None


@pytest.mark.parametrize(
    ("min_floor", "binding"),
    [
        # The fakes' sample mean is 0.02 above the floor, over 100 contexts.
        (0.71, r"the number of questions: .* about 400 contexts instead of 100"),
        (0.80, r"its accuracy: even the mean F1 is below"),
    ],
)
def test_a_floor_that_none_reaches_names_the_nearest_and_what_binds(
    min_floor: float, binding: str
) -> None:
    """More contexts help only where the mean is above."""
    catalog = make_catalog([FAST, SLOW], [0.5, 0.7])
    with pytest.raises(NothingToPublish, match=rf"nearest is slow at 0\.7000.*{binding}"):
        check_publishable(catalog, min_floor, allow_dominated=False)
