"""A decision that predicts few plans is the one that predicts all: same option, reason and violations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain import Decision, Option, Reason, Size, Slo, SloPolicy, Trust
from gateway.routing import policy
from gateway.routing.policy import choose, choose_early
from gateway.routing.router import Router
from gateway.serving_set import MOST_SIZES, ServingSet
from tests.fakes import (
    make_cascade,
    make_catalog,
    make_plan,
    make_variant,
    serving_set,
    with_answerable,
    with_loss,
)
from tests.gateway.routing.test_forgetting import Burst, bursts, play

NAMES = ("small", "medium", "large")
VARIANTS = [make_variant(name, ms) for name, ms in zip(NAMES, (5.0, 10.0, 20.0), strict=True)]
CHAINS = [VARIANTS[:1], VARIANTS[1:2], VARIANTS[2:], VARIANTS[:2], VARIANTS[::2], VARIANTS]
FLOORS = st.sampled_from([0.0, 0.5, 0.6, 0.7, 0.9])
LOSSES = st.none() | st.sampled_from([0.0, 0.05, 0.2])
TIMES = st.sampled_from([1.0, 5.0, 10.0, 20.0, 21.0, 50.0, 80.0])

slos = st.builds(
    Slo,
    TIMES | st.floats(0.5, 200.0),
    FLOORS,
    st.sampled_from(SloPolicy),
    st.sampled_from([20.0, 100.0, 800.0]),
    st.just("test"),
    variant=st.none() | st.sampled_from(NAMES),
    max_f1_loss=LOSSES,
    min_answerable_f1=st.none() | FLOORS,
)
failures = st.frozensets(st.sampled_from(NAMES), max_size=2)


@st.composite
def options(draw: st.DrawFn) -> list[Option]:
    """Return options of all kinds, in any order; many have the same price or the same time."""
    found = []
    for chain in CHAINS:
        plan = make_plan(chain[0], draw(FLOORS))
        plan = replace(plan, name="+".join(v.name for v in chain))
        plan = replace(plan, variants=tuple(v.name for v in chain))
        if (loss := draw(LOSSES)) is not None:
            plan = with_loss(plan, loss)
        if draw(st.booleans()):
            plan = with_answerable(plan, draw(FLOORS))
        trust, price = draw(st.sampled_from(Trust)), draw(TIMES)
        idle_ms, wait_ms, behind_ms = draw(TIMES), draw(TIMES), draw(st.just(0.0) | TIMES)
        found.append(
            Option(plan, trust, int(draw(TIMES)), price, idle_ms, idle_ms + wait_ms, behind_ms)
        )
    return draw(st.permutations(found))


@settings(deadline=None, max_examples=100)
@given(options(), slos, st.sampled_from([0.0, 5.0, 60.0]), failures)
def test_an_early_choice_is_the_choice(
    all_of_them: list[Option], slo: Slo, spent_ms: float, failing: frozenset[str]
) -> None:
    """Callers see the same decision; and where one meets the SLO, not all plans are needed for it."""
    by_price = sorted(all_of_them, key=lambda o: o.price)
    unknown = [o._replace(idle_ms=float("nan"), predicted_ms=float("nan")) for o in by_price]
    predictions = {o.plan.name: o for o in all_of_them}
    early = choose_early(slo, unknown, lambda o: predictions[o.plan.name], spent_ms, failing)
    decision = choose(slo, all_of_them, spent_ms, failing)
    assert early == (decision if decision.reason in (Reason.MEETS_SLO, Reason.PINNED) else None)


class _SeesAll:
    """The policy, asked with every plan predicted."""

    quantile_for = staticmethod(policy.quantile_for)
    choose = staticmethod(policy.choose)

    def choose_early(self, *_: object) -> None: ...


def _serving() -> ServingSet:
    """Return three variants and their cascades, served."""
    catalog = make_catalog(VARIANTS, [0.5, 0.6, 0.7])
    cascades = [
        make_cascade(chain, floor, threshold=0.5, reach=(1.0, 0.3, 0.1)[: len(chain)])
        for chain, floor in zip(CHAINS[3:], (0.58, 0.66, 0.68), strict=True)
    ]
    return serving_set(replace(catalog, plans=(*catalog.plans, *cascades)))


@settings(deadline=None, max_examples=50)
@given(
    bursts,
    st.integers(0, 12),
    st.lists(slos, min_size=8, max_size=8),
    st.sampled_from([[], [-5.0, 40.0, 90.0, 250.0]]),
)
def test_a_router_decides_as_if_it_predicted_all(
    history: list[Burst], n_busy: int, asked: list[Slo], head_starts_ms: list[float]
) -> None:
    """After any history, with any work in flight: to the last bit of the predicted times."""
    serving = _serving()
    now_ms = play(serving, history[:4])
    for i in range(n_busy):
        serving.latency.begin(NAMES[i % 2 * 2], Size(192, 1 + i % 3), now_ms)
    early, late = (
        Router(chooser, lambda: now_ms + 1.0, lambda _: head_starts_ms)
        for chooser in (policy, _SeesAll())
    )
    for slo in asked:
        decision = early.fit(slo, serving, Size(128, 3), 2.0).decision
        assert decision == late.fit(slo, serving, Size(128, 3), 2.0).decision


def test_only_plans_that_may_be_chosen_are_predicted() -> None:
    """A floor that one plan meets costs one prediction, whatever else is served."""
    serving, predicted = _serving(), list[str]()

    class Counting:
        quantile_for = staticmethod(policy.quantile_for)
        choose = staticmethod(policy.choose)

        def choose_early(
            self,
            slo: Slo,
            cheapest_first: Iterable[Option],
            predict: Callable[[Option], Option],
            spent_ms: float,
            failing: Collection[str],
        ) -> Decision | None:
            def noted(known: Option) -> Option:
                predicted.append(known.plan.name)
                return predict(known)

            return policy.choose_early(slo, cheapest_first, noted, spent_ms, failing)

    router = Router(Counting(), lambda: 0.0, lambda _: ())
    slo = Slo(1_000.0, 0.7, SloPolicy.PREFER_LATENCY, 4_000.0, "test")
    routed = router.route(slo, serving, Size(128, 1), 0.0)
    assert (predicted, routed.options) == (["large"], ())
    assert _names(router.route(slo, serving, Size(128, 1), 0.0, detailed=True).options) == _names(
        serving.cheapest_first(Size(128, 1))
    )


def _names(options: Sequence[Option]) -> set[str]:
    return {option.plan.name for option in options}


def test_sizes_that_callers_choose_do_not_fill_the_memory() -> None:
    """A request may have any number of windows; what is kept of each is the same after it was dropped."""
    served = serving_set(make_catalog(VARIANTS, [0.5, 0.6, 0.7]))
    first = served.cheapest_first(Size(384, 1))
    for n_windows in range(1, 3 * MOST_SIZES):
        served.cheapest_first(Size(384, n_windows))
        assert len(served._unpredicted) <= MOST_SIZES
    again = served.cheapest_first(Size(384, 1))
    assert [o.plan for o in again] == [o.plan for o in first]
    assert [o.price for o in again] == [o.price for o in first]
