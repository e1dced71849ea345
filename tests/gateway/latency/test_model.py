"""Predictions from profiles, from the work in flight and from what was seen."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest

from gateway.domain import Seen, Size
from gateway.latency.model import GATEWAY_MS, WINDOW_MS, LatencyModel, Prediction, Work
from tests.fakes import make_cascade, make_plan, make_variant

SMALL = make_variant("small", 10)
LARGE = make_variant("large", 20)
PLAN = make_plan(SMALL, 0.5)
ONE = Size(64, 1)


def model(cores: int = 2, previous: LatencyModel | None = None) -> LatencyModel:
    profiles = {"small": SMALL.profile, "large": LARGE.profile}
    return LatencyModel(profiles, cores, {"small": 2, "large": 2}, previous)


def predict(
    latency: LatencyModel, size: Size = ONE, quantile: float = 0.95, now_ms: float = 0.0
) -> Prediction:
    return latency.predict([PLAN], size, quantile, now_ms)[0]


def served(latency: LatencyModel, took_ms: float, n: int, now_ms: float = 0.0) -> float:
    """Answer requests one after the other; return the time after the last."""
    for _ in range(n):
        work = latency.begin("small", ONE, now_ms)
        now_ms += took_ms
        latency.finish(work, now_ms)
    return now_ms


@pytest.mark.parametrize(("quantile", "ms"), [(0.5, 10.0), (0.95, 15.0), (0.99, 20.0)])
def test_the_quantile_chooses_the_column_of_the_profile(quantile: float, ms: float) -> None:
    """Strict asks for the 99th, the others for the 95th."""
    expected = (GATEWAY_MS + 10.0) * ms / 10.0
    assert predict(model(), ONE, quantile).idle_ms == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n_windows", "cores", "rounds"), [(1, 2, 1), (2, 2, 1), (3, 2, 2), (4, 1, 4), (8, 16, 4)]
)
def test_windows_share_cores_and_instances(n_windows: int, cores: int, rounds: int) -> None:
    """A long context takes its turns; cores without an instance do not help."""
    expected = GATEWAY_MS + WINDOW_MS * (n_windows - 1) + 10.0 * rounds
    found = predict(model(cores), Size(64, n_windows), 0.5)
    assert found.idle_ms == pytest.approx(expected)


def test_cost_counts_every_window() -> None:
    """Cost is compute, not time."""
    assert predict(model(), Size(64, 3)).cost_ms == pytest.approx(30.0)


def test_a_bucket_without_a_cell_takes_the_next_longer() -> None:
    """Longer is never faster."""
    assert SMALL.profile.cell(96).bucket == 128


def test_what_was_never_seen_is_predicted_wider_than_its_profile() -> None:
    """A profile of an idle host alone neither guarantees a latency nor justifies a refusal."""
    for quantile, wider in ((0.5, 1.0), (0.95, exp(0.20)), (0.99, exp(0.35))):
        found = predict(model(), ONE, quantile)
        assert found.predicted_ms == pytest.approx(wider * found.idle_ms)


def test_a_free_core_means_no_wait() -> None:
    """One request on two cores leaves one free."""
    latency = model()
    alone = predict(latency)
    latency.begin("small", ONE, 0.0)
    assert predict(latency) == alone


def test_work_in_flight_delays_until_it_is_done() -> None:
    """Whether it was answered or failed, it is waited for no longer."""
    latency = model()
    alone = predict(latency, quantile=0.5).predicted_ms
    works = [latency.begin("small", ONE, 0.0) for _ in range(4)]
    assert predict(latency, quantile=0.5).predicted_ms > alone + 10.0
    for work in works:
        latency.leave(work, 0.0)
        latency.leave(work, 0.0)
    assert predict(latency, quantile=0.5).predicted_ms == pytest.approx(alone)
    assert not latency.busy


def test_a_variant_delays_another_by_the_cores_they_share() -> None:
    """Instances are a variant's own, cores are everybody's."""
    alone = predict(model(), quantile=0.5).predicted_ms
    for cores, delayed in ((2, True), (16, False)):
        latency = model(cores)
        for _ in range(4):
            latency.begin("large", ONE, 0.0)
        assert (predict(latency, quantile=0.5).predicted_ms > alone + 1.0) is delayed


def test_the_work_of_other_gateways_delays_as_well() -> None:
    """A shared model server does not ask whose window it runs."""
    latency = model()
    served(latency, 12.0, 1)
    before = predict(latency, now_ms=12.0).predicted_ms
    latency.set_external({"small": 6, "gone": 3}, 12.0)
    assert predict(latency, now_ms=12.0).predicted_ms > 2 * before
    latency.set_external({}, 12.0)
    assert predict(latency, now_ms=12.0).predicted_ms == pytest.approx(before)


def test_p99_is_never_below_p95() -> None:
    """However the two were learned."""
    latency = model()
    now_ms = 0.0
    for took_ms in [12.0] * 50 + [60.0] * 5 + [9.0] * 400:
        now_ms = served(latency, took_ms, 1, now_ms)
        p95, p99 = (predict(latency, ONE, q, now_ms).predicted_ms for q in (0.95, 0.99))
        assert p95 <= p99


def test_a_slow_host_is_learned_and_forgotten() -> None:
    """Within seconds, both ways."""
    latency = model()
    fast = predict(latency, now_ms=served(latency, 12.0, 100)).predicted_ms
    now_ms = served(latency, 36.0, 60, 1200.0)
    slow = predict(latency, now_ms=now_ms).predicted_ms
    assert 36.0 <= slow < 90.0
    now_ms = served(latency, 12.0, 400, now_ms)
    assert predict(latency, now_ms=now_ms).predicted_ms < 1.3 * fast


def test_a_stall_is_waited_for() -> None:
    """Work that is long overdue is not work that is nearly done."""
    latency = model()
    works = [latency.begin("small", ONE, 0.0) for _ in range(2)]
    assert predict(latency, now_ms=2000.0).predicted_ms > 500.0
    for work in works:
        latency.give_up(work, 2000.0)


def give_up_all(latency: LatencyModel, after_ms: float, n: int) -> float:
    now_ms = 10_000.0
    for _ in range(n):
        work = latency.begin("small", ONE, now_ms)
        now_ms += after_ms
        latency.give_up(work, now_ms)
    return now_ms


def test_work_that_was_given_up_counts_as_at_least_so_long() -> None:
    """Else a deadline would teach that everything ends in time; and an early end teaches nothing."""
    learned = model()
    usual = predict(learned, now_ms=served(learned, 12.0, 200)).predicted_ms
    late = model()
    served(late, 12.0, 200)
    assert predict(late, now_ms=give_up_all(late, 100.0, 30)).predicted_ms > 60.0
    early = model()
    served(early, 12.0, 200)
    after = predict(early, now_ms=give_up_all(early, 1.0, 30)).predicted_ms
    assert after == pytest.approx(usual, rel=0.25)


def test_given_up_work_broke_its_prediction_only_once_it_took_longer() -> None:
    """A caller that leaves early says nothing of the model."""
    latency = model()
    assert latency.give_up(latency.begin("small", ONE, 0.0), 1.0) is None
    seen = latency.give_up(latency.begin("small", ONE, 1.0), 500.0)
    assert seen is not None
    assert (seen.in_p95, seen.in_p99) == (False, False)


def test_an_answer_says_whether_its_prediction_held() -> None:
    """What the coverage counters count."""
    latency = model()

    def ends(work: Work, after_ms: float) -> tuple[bool, bool]:
        seen = latency.finish(work, work.began_ms + after_ms)
        return seen.in_p95, seen.in_p99

    work = latency.begin("small", ONE, 0.0)
    assert work.p95_ms < work.p99_ms
    assert ends(work, work.p95_ms) == (True, True)
    work = latency.begin("small", ONE, 100.0)
    assert ends(work, (work.p95_ms + work.p99_ms) / 2) == (False, True)
    work = latency.begin("small", ONE, 200.0)
    assert ends(work, work.p99_ms + 1) == (False, False)


def test_what_was_learned_outlives_a_new_catalog() -> None:
    """A switch must not forget the host, nor the work that is still in flight."""
    first = model()
    now_ms = served(first, 36.0, 60)
    work = first.begin("small", ONE, now_ms)
    second = model(previous=first)
    busy = [second.busy]
    first.finish(work, now_ms + 36.0)
    assert [*busy, second.busy] == [True, False]
    assert predict(second, now_ms=now_ms + 36.0).predicted_ms > 36.0


def test_an_idle_gateway_forgets_what_it_saw_under_load() -> None:
    """After 1.5 s it predicts what a fresh one would; while work is in flight it forgets nothing."""
    latency, fresh = model(), predict(model())
    now_ms = served(latency, 60.0, 50)
    slow = predict(latency, now_ms=now_ms).predicted_ms
    assert slow > 1.5 * fresh.predicted_ms
    half = predict(latency, now_ms=now_ms + 750.0).predicted_ms
    assert fresh.predicted_ms < half < slow
    work = latency.begin("small", ONE, now_ms + 750.0)
    assert predict(latency, now_ms=now_ms + 3_000.0).predicted_ms > half
    latency.leave(work, now_ms + 3_000.0)
    assert predict(latency, now_ms=now_ms + 4_500.0) == pytest.approx(fresh)


def test_what_a_variant_does_at_rest_is_its_own() -> None:
    """It says nothing of another one, and a new catalog with the same variant keeps it."""
    latency = model()
    later_ms = served(latency, 6.0, 20) + 1_500.0
    assert predict(latency, now_ms=later_ms).idle_ms < 0.7 * predict(model()).idle_ms
    large, never_seen = (m.predict_stage("large", ONE, 0.95, later_ms) for m in (latency, model()))
    assert large == pytest.approx(never_seen)
    again = model(previous=latency)
    assert predict(again, now_ms=later_ms) == predict(latency, now_ms=later_ms)


LOADS = [
    # cores, in flight, now -> regime, expected ms of the model, wait
    (2, [], 0.0, 0, 10.0, 0.0),
    (2, ["large"], 0.0, 0, 10.0, 0.0),
    (2, ["large"] * 2, 19.0, 1, 10.0, 0.0),
    (1, ["large"], 19.0, 2, 12.0, 2.0),
    (2, ["large"] * 2, 0.0, 3, 15.0, 5.0),
    (2, ["small"] * 6, 0.0, 4, 37.5, 27.5),
]


@pytest.mark.parametrize(("cores", "in_flight", "now_ms", "regime", "ms", "wait_ms"), LOADS)
def test_latencies_are_compared_with_those_under_similar_load(
    cores: int, in_flight: list[str], now_ms: float, regime: int, ms: float, wait_ms: float
) -> None:
    """By whether a core is free, then by what share of the time is no wait."""
    latency = model(cores)
    for variant in in_flight:
        latency.begin(variant, ONE, 0.0)
    found = latency.predict_stage("small", ONE, 0.5, now_ms)
    assert found == pytest.approx((12.0, ms + GATEWAY_MS, 10.0, wait_ms))
    work = latency.begin("small", ONE, now_ms)
    assert (work.regime, work.expected_ms, work.compute_ms) == (regime, ms + GATEWAY_MS, 10.0)
    assert work.p95_ms == pytest.approx((ms + GATEWAY_MS) * 1.5 * exp(0.20))
    assert work.p99_ms == pytest.approx((ms + GATEWAY_MS) * 2.0 * exp(0.35))
    assert work.alone == (in_flight == [])


def test_a_cascade_is_predicted_by_the_sum_of_its_stages_and_costs_what_it_reaches() -> None:
    """It must be in time when every stage is asked; on average it asks few."""
    plan = make_cascade([SMALL, LARGE], 0.6, 0.5, (1.0, 0.25))
    found = model().predict([PLAN, plan, make_plan(LARGE, 0.7)], ONE, 0.5, 0.0)
    assert found[1] == pytest.approx((12.0 + 22.0, 12.0 + 22.0, 10.0 + 0.25 * 20.0, 0.0))
    assert [each.cost_ms for each in found] == [10.0, 15.0, 20.0]
    unknown = replace(plan, reach=())
    assert model().predict([unknown], ONE, 0.5, 0.0)[0].cost_ms == 30.0


def test_a_plan_waits_for_its_instances_and_for_the_cores() -> None:
    """A cascade waits for each of its variants; what ran meanwhile shortens the wait."""
    plans = [PLAN, make_plan(LARGE, 0.7)]
    latency = model()
    for _ in range(6):
        latency.begin("small", ONE, 0.0)
    waits = [each.wait_ms for each in latency.predict(plans, ONE, 0.5, 0.0)]
    assert waits[0] != waits[1]
    both = make_cascade([SMALL, LARGE], 0.6, 0.5, (1.0, 0.25))
    assert latency.predict([both], ONE, 0.5, 0.0)[0].wait_ms == pytest.approx(sum(waits))
    assert latency.predict([PLAN], ONE, 0.5, 6.0)[0].wait_ms == pytest.approx(waits[0] - 6.0)
    assert latency.busy


def test_a_request_waits_for_the_first_free_core_whatever_its_plan() -> None:
    """Nothing waits while a core is free; other gateways' windows take cores, too."""
    latency = model()
    latency.begin("large", ONE, 0.0)
    assert latency.wait_ms(0.0) == 0.0
    latency.begin("small", ONE, 0.0)
    assert latency.wait_ms(0.0) == pytest.approx(10.0), "the small one is done first"
    assert latency.wait_ms(4.0) == pytest.approx(6.0)
    latency.begin("small", ONE, 4.0)  # three on two cores: two must be done before one is free
    assert latency.wait_ms(4.0) == pytest.approx(10.0)
    for _ in range(2):
        latency.begin("small", ONE, 4.0)
    assert latency.wait_ms(4.0) == pytest.approx((6.0 + 3 * 10.0) / 2)


def test_work_of_other_gateways_holds_up_all_but_the_first_request() -> None:
    """A gateway with nothing in flight always admits; others' windows run on their instances alone."""
    latency = model()
    latency.leave(latency.begin("small", ONE, 0.0), 10.0)
    latency.set_external({"small": 40}, 10.0)
    assert latency.wait_ms(10.0) == 0.0
    latency.begin("large", ONE, 10.0)
    assert latency.wait_ms(10.0) == pytest.approx(10.0)


def test_a_line_with_few_instances_leaves_the_other_cores_alone() -> None:
    """A queue for one model holds up no request that another one can answer."""
    latency = model(4)
    for _ in range(8):
        latency.begin("small", ONE, 0.0)
    assert latency.wait_ms(0.0) == 0.0


def test_a_document_takes_no_turn_from_the_others() -> None:
    """Its windows run beside them; a few windows are a request like any other."""
    latency = model()
    latency.begin("small", Size(128, 40), 0.0)
    assert latency.wait_ms(0.0) == 0.0
    latency.begin("large", Size(128, 4), 0.0)
    assert latency.wait_ms(0.0) == pytest.approx(20.0), "one window of each core"
    latency = model()
    for _ in range(5):
        latency.begin("large", Size(128, 9), 0.0)
    assert latency.wait_ms(0.0) > 10.0, "as many documents as cores, not more"


def test_an_answer_that_hangs_takes_no_core() -> None:
    """Else a dead instance would hold up requests that others can answer."""
    latency = model()
    for _ in range(4):  # two of them wait for the instances that hang
        latency.begin("large", ONE, 0.0)
    assert latency.wait_ms(60.0) > 0.0
    assert latency.wait_ms(100.0) == 0.0


@pytest.mark.parametrize(("cores", "rooms"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_there_is_room_while_half_of_the_cores_are_free(cores: int, rooms: int) -> None:
    """What may run beside requests asks first."""
    latency = model(cores)
    for _ in range(rooms):
        assert latency.has_room
        latency.begin("small", ONE, 0.0)
    assert not latency.has_room


def test_requests_behind_take_their_cost_on_all_cores() -> None:
    """Each passes the gateway once; one that came later may be answered later."""
    each_ms = (10.0 + GATEWAY_MS) / 4
    assert model(4).behind_ms([0.0] * 6, 10.0) == pytest.approx(6 * each_ms)
    apart = [n * each_ms for n in range(1, 7)]  # as they come while a queue does not grow
    assert model(4).behind_ms(apart, 10.0) == pytest.approx(6 * each_ms / 2)
    assert model(4).behind_ms([each_ms, 50 * each_ms], 10.0) == pytest.approx(each_ms / 2)
    assert model(4).behind_ms([50 * each_ms], 10.0) == model(4).behind_ms([], 10.0) == 0.0


def test_only_answers_that_had_the_host_to_themselves_teach_of_rest() -> None:
    """Whoever began meanwhile may have taken a core."""
    latency = model()
    first = latency.begin("small", ONE, 0.0)
    second = latency.begin("small", ONE, 0.0)
    for work in (first, second):
        latency.finish(work, 6.0)
    unloaded = first.cell.unloaded
    assert len(unloaded) == 0
    latency.finish(latency.begin("small", ONE, 10.0), 16.0)
    assert len(unloaded) == 1
    assert unloaded.quantiles[0] == pytest.approx(log(6.0 / 12.0))


def test_what_is_seen_is_compared_with_the_p95() -> None:
    """The ratio is for the histogram of predictions; exactly on time is in time."""
    latency = model()
    work = latency.begin("small", ONE, 0.0)
    seen = latency.finish(work, work.p95_ms)
    assert seen == Seen("small", in_p95=True, in_p99=True, ratio=1.0)
    work = latency.begin("small", ONE, 100.0)
    seen = latency.finish(work, 100.0 + 2 * work.p95_ms)
    assert not seen.in_p95
    assert seen.ratio == pytest.approx(2.0)
