"""The emulated host and the life of a request on it, against times that can be reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.domain import SloPolicy
from loadtest.lab import contenders
from loadtest.lab.engine import Callers, End, simulate, simulate_closed
from loadtest.lab.host import EmulatedHost, HostJob
from loadtest.lab.measures import measure
from loadtest.lab.rivals import Fixed
from tests.loadtest.lab_world import N, doubtful, ours, slo, trace, world


def run_out(host: EmulatedHost) -> list[tuple[int, float]]:
    """Return (request, end) of all that is on the host."""
    ended = []
    while (at := host.next_ms()) != float("inf"):
        ended.append((host.finish(at).request, at))
    return ended


def test_jobs_that_fit_the_cores_do_not_slow_each_other() -> None:
    """A core each, as the kernel gives it."""
    host = EmulatedHost(2, {"a": 2})
    host.submit(HostJob(0, "a", 10.0), 0.0)
    host.submit(HostJob(1, "a", 4.0), 0.0)
    assert run_out(host) == [(1, 4.0), (0, 10.0)]


def test_more_jobs_than_cores_share_them_alike() -> None:
    """Instances of two variants on one core: half of it each, then all of it."""
    host = EmulatedHost(1, {"a": 1, "b": 1})
    host.submit(HostJob(0, "a", 10.0), 0.0)
    host.submit(HostJob(1, "b", 4.0), 0.0)
    (first, at), (last, end) = run_out(host)
    assert (first, last) == (1, 0)
    assert (at, end) == pytest.approx((8.0, 14.0))


def test_who_weighs_more_gets_more_but_never_more_than_a_core() -> None:
    """Three times the share of a model on one core; with a core to spare, the models have the rest."""
    host = EmulatedHost(1, {"a": 3, "thread": 1}, weights={"thread": 3.0})
    host.submit(HostJob(0, "thread", 5.0), 0.0)
    host.submit(HostJob(1, "a", 5.0), 0.0)
    host.submit(HostJob(2, "a", 5.0), 0.0)
    (first, at), *_, (_, end) = run_out(host)
    assert first == 0
    assert (at, end) == pytest.approx((5 * 5 / 3, 15.0))
    host = EmulatedHost(2, {"a": 3, "thread": 1}, weights={"thread": 9.0})
    for request, place in enumerate(("thread", "a", "a")):
        host.submit(HostJob(request, place, 5.0), 0.0)
    assert run_out(host) == [(0, 5.0), (1, 7.5), (2, 7.5)]


def test_an_instance_takes_windows_in_the_order_of_their_arrival() -> None:
    """Triton's queue of a model is first come, first served."""
    host = EmulatedHost(2, {"a": 1})
    for request, work_ms in enumerate((5.0, 9.0, 1.0)):
        host.submit(HostJob(request, "a", work_ms), 0.0)
    assert run_out(host) == [(0, 5.0), (1, 14.0), (2, 15.0)]


def test_work_nobody_waits_for_is_not_begun() -> None:
    """Triton's `timeout` drops it from the queue."""
    host = EmulatedHost(1, {"a": 1}, dead=lambda job: job.request == 1)
    for request in range(3):
        host.submit(HostJob(request, "a", 5.0), 0.0)
    assert run_out(host) == [(0, 5.0), (2, 10.0)]


def test_a_batch_ends_together_and_costs_its_windows() -> None:
    """A CPU gains nothing from batches: two of them take as long as both in turn."""
    host = EmulatedHost(1, {"a": 1}, batch=lambda _: 2)
    for request in range(3):
        host.submit(HostJob(request, "a", 5.0), 0.0)
    assert host.finish(host.next_ms()).request == 0
    at = host.next_ms()
    batch = host.finish(at)
    assert (batch.request, [j.request for j in batch.with_it], at) == (1, [2], 15.0)


def test_a_lone_request_takes_the_gateway_and_its_model() -> None:
    """1 ms for the gateway, 20 ms for the model, with the noise of its profile."""
    (fate,) = simulate(world(), trace([0.0]), Fixed("large"), seed=1)
    assert fate.end is End.ANSWERED
    assert 1 + 10 <= fate.latency_ms <= 1 + 2.5 * 20
    assert fate.compute_ms == pytest.approx(fate.latency_ms)


def test_windows_of_one_question_run_side_by_side() -> None:
    """Two instances answer two of three windows at a time."""
    (one,) = simulate(world(), trace([0.0]), Fixed("large"), seed=1)
    (three,) = simulate(world(n_windows=3), trace([0.0]), Fixed("large"), seed=1)
    assert three.latency_ms - 1 == pytest.approx(2 * (one.latency_ms - 1))


def test_a_deadline_ends_what_is_still_waiting() -> None:
    """As the gateway does: nothing is answered after it, nothing is lost."""
    fates = simulate(world(), trace([0.0] * 40, slo(25.0)), Fixed("large"), seed=1)
    ends = [f.end for f in fates]
    assert ends.count(End.ANSWERED) + ends.count(End.EXPIRED) == 40
    assert 0 < ends.count(End.EXPIRED) < 40
    assert all(f.latency_ms <= 100.0 for f in fates if f.end is End.ANSWERED)


def test_the_gateways_policy_refuses_what_no_plan_gives() -> None:
    """The very function that serves decides here."""
    requested = slo(100.0, 0.9, SloPolicy.STRICT)
    (fate,) = simulate(world(), trace([0.0], requested), ours(), seed=1)
    assert fate.end is End.REFUSED


def test_a_floor_is_judged_by_the_answers_not_by_the_certificate() -> None:
    """The small one's recorded answers score 0.55 on average, whatever was certified."""
    for floor, kept in ((0.5, 1.0), (0.6, 0.0)):
        requests = trace([100.0 * i for i in range(20)], slo(100.0, floor))
        found = measure(world(), requests, simulate(world(), requests, Fixed("small"), 1))["all"]
        assert found["in_time"] == 1.0
        assert found["floor_met"] == found["joint"] == kept


def test_the_same_seed_gives_the_same_fates() -> None:
    """Comparisons between policies are paired: luck is of the trace, not of the run."""
    requests = trace([5.0 * i for i in range(50)])
    runs = [simulate(world(), requests, ours(), seed=3) for _ in range(2)]
    assert [f.latency_ms for f in runs[0]] == [f.latency_ms for f in runs[1]]
    other = simulate(world(), requests, ours(), seed=4)
    assert [f.latency_ms for f in runs[0]] != [f.latency_ms for f in other]


def test_a_cascade_asks_the_next_variant_where_the_answer_is_doubted() -> None:
    """Half of the questions pay for both stages; the answer is that of the last one asked."""
    there = doubtful()
    requests = trace([200.0 * i for i in range(N)], slo(150.0, 0.65))
    fates = simulate(there, requests, ours(there), seed=1)
    assert {f.plan for f in fates} == {"both"}
    assert [f.variant for f in fates] == ["small"] * (N - 10) + ["large"] * 10
    assert all(f.end is End.ANSWERED and not f.cut for f in fates)
    assert fates[-1].compute_ms > fates[0].compute_ms + 10.0
    found = measure(there, requests, fates)["all"]
    assert (found["escalated"], found["escalation_cut"]) == (0.5, 0.0)
    assert found["floor_met"] == 1.0


class Escalating(Fixed):
    """The cascade for everything."""

    cascades = True


def test_a_late_escalation_is_cut_and_reported() -> None:
    """By the gateway's rule; the certificate then says nothing of the answer."""
    there = doubtful(doubted=N)
    requests = trace([2.0 * i for i in range(40)], slo(60.0, 0.65))
    fates = simulate(there, requests, Escalating("both"), seed=1)
    cut = [f for f in fates if f.cut]
    assert 0 < len(cut) < 40
    assert {f.variant for f in cut} == {"small"}
    found = measure(there, requests, fates)["all"]
    assert found["escalation_cut"] == pytest.approx(len(cut) / (40 * found["answered"]))
    assert found["by_certificate"] <= 1 - len(cut) / 40


def test_an_escalation_that_hangs_gives_way_to_the_answer_at_hand() -> None:
    """Shortly before the deadline: an answer in doubt is better than none."""
    there = doubtful(doubted=N)
    slow = replace(there, gateway_cpu_ms=1.0, escalation_cpu_ms=500.0)
    (fate,) = simulate(slow, trace([0.0], slo(100.0, 0.65)), Escalating("both"), seed=1)
    assert (fate.end, fate.variant, fate.cut) == (End.ANSWERED, "small", True)
    assert fate.latency_ms == pytest.approx(0.95 * 400.0)


def test_rivals_are_offered_direct_plans_alone() -> None:
    """None of the systems they stand for escalates by a certified confidence."""
    there = doubtful()
    assert "fixed both" not in contenders.names(there)
    requests = trace([100.0 * i for i in range(5)], slo(100.0, 0.65))
    fates = simulate(there, requests, contenders.make("infaas-style", there, {}, 0), seed=1)
    assert {f.plan for f in fates} == {"large"}


def test_what_waits_too_long_for_the_gateway_is_refused_for_little() -> None:
    """800 a second, of which the gateway can read 250: what it does read is answered in time."""
    flood = trace([1.25 * i for i in range(800)], slo(60.0))
    fates = simulate(replace(world(), gateway_cpu_ms=4.0), flood, ours(), seed=1)
    refused = [f for f in fates if f.end is End.REFUSED and f.compute_ms == 0.5]
    in_time = [f for f in fates if f.latency_ms <= 60.0]
    assert len(refused) > 500
    assert len(in_time) > 0.8 * sum(f.end is End.ANSWERED for f in fates)
    assert len(in_time) > 90


@pytest.mark.parametrize("honour", [False, True])
@pytest.mark.parametrize("n", [1, 8, 32])
def test_callers_in_a_closed_loop_are_all_answered(n: int, honour: bool) -> None:
    """Each of them could be: none is refused because others ask, too."""
    there = replace(world(), gateway_cpu_ms=4.0)
    questions = trace([0.0] * 3_000, slo(250.0, 0.6))
    requests, fates = simulate_closed(there, questions, ours(), 1, Callers(n, 4.0, honour))
    assert len({a.caller for a in requests}) == n
    assert [f.end for f in fates] == [End.ANSWERED] * len(requests)
    assert sum(f.latency_ms <= 250.0 for f in fates) > 0.95 * len(fates)


def test_a_caller_who_honours_the_refusal_comes_back_later() -> None:
    """Refusals are fewer, answers are not."""
    there = world(cores=1)
    questions = trace([0.0] * 20_000, slo(50.0, 0.0))
    sent = []
    for honour in (False, True):
        requests, fates = simulate_closed(there, questions, ours(), 1, Callers(64, 4.0, honour))
        sent.append(len(requests))
        assert sum(f.end is End.ANSWERED for f in fates) > 300
    assert sent[1] < sent[0]
