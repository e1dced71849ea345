"""Fleets in virtual time: who is chosen, what a lost zone does, what views are worth, what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest

from loadtest import cli
from loadtest.fleet import day, kinds, measures, page, served, tables
from loadtest.fleet.choices import Choice, Rule, choose, less_busy_of_two
from loadtest.fleet.day import Segment
from loadtest.fleet.engine import Event, Rollout, Setup, ZoneLost, simulate
from loadtest.fleet.kinds import Kind
from loadtest.fleet.layout import Layout
from loadtest.fleet.measures import ClassFound
from loadtest.fleet.study import BadFleet, Options, Study
from loadtest.lab.engine import End, Fate
from loadtest.lab.engine import simulate as simulate_one
from loadtest.lab.mixes import Kind as Class
from loadtest.lab.traces import Trace, at_times
from tests.loadtest.lab_world import ours, slo, trace, world

MIX = (Class(1.0, slo(60.0, 0.6)),)  # `large` alone certifies it: 20 ms of a core
KIND = Kind("test", "a host", world(), 1.0)


def poisson(hosts: int, load: float, seconds: float, seed: int = 1) -> Trace:
    """Return requests at a load of a fleet, 1 being all cores at work on `large`."""
    segments = [Segment(seconds, load * hosts * KIND.capacity_per_s)]
    times = day.arrivals(segments, np.random.default_rng(seed))
    return at_times(times, MIX, KIND.world.recording, seed)


def play(
    hosts: int,
    requests: Trace,
    choice: Choice = Choice.LEAST_OWN,
    *events: Event,
    poll_ms: float = 1_000.0,
    each: int = 10,
) -> list[Fate]:
    setup = Setup(KIND, Layout.of(hosts, each), choice, poll_ms, events)
    return simulate(setup, requests, seed=1)[0]


def attained(requests: Trace, fates: list[Fate], begin_ms: float, end_ms: float) -> float:
    """Return the share of the requests of an interval whose SLO was met."""
    return measures.measure(KIND.world, requests, fates, (begin_ms, end_ms)).attained


def test_a_fleet_of_one_is_the_labs_host() -> None:
    """The lab is the engine: with one host there is nothing else."""
    requests = trace([7.0 * i for i in range(120)], slo(60.0, 0.6))
    alone = simulate_one(world(), requests, ours(), seed=1)
    fleet = play(1, requests)
    assert [(f.end, f.plan, f.latency_ms) for f in fleet] == [
        (f.end, f.plan, f.latency_ms) for f in alone
    ]


def test_the_same_seed_gives_the_same_fates() -> None:
    """A page can be drawn again."""
    requests = poisson(4, 0.8, 1.0)
    runs = [play(4, requests, Choice.TWO_POLLED, poll_ms=100.0) for _ in range(2)]
    assert [f.latency_ms for f in runs[0]] == [f.latency_ms for f in runs[1]]


@pytest.mark.parametrize("choice", Choice)
def test_every_request_ends(choice: Choice) -> None:
    """Whatever is looked at, a fleet with room answers everything."""
    requests = poisson(6, 0.4, 1.0)
    fates = play(6, requests, choice, poll_ms=100.0, each=3)
    assert all(f.over for f in fates)
    assert sum(f.end is End.ANSWERED for f in fates) > 0.97 * len(fates)


@pytest.mark.parametrize("silent", [False, True])
def test_a_lost_zone_lowers_attainment_and_it_recovers(silent: bool) -> None:
    """A third of the fleet is gone for two seconds, and the rest is nearly full."""
    requests = poisson(6, 0.6, 11.0)
    fates = play(6, requests, Choice.LEAST_OWN, ZoneLost(1_500.0, 3_500.0, silent))
    before = attained(requests, fates, 300.0, 1_500.0)
    assert before > 0.95
    assert attained(requests, fates, 1_500.0, 3_500.0) < before - 0.1
    assert attained(requests, fates, 6_500.0, 11_000.0) > before - 0.05
    assert all(f.over for f in fates)


def test_what_the_zone_had_is_lost_and_little_else() -> None:
    """Calls that break are sent to another Triton, as far as the budget of retries allows."""
    requests = poisson(6, 0.3, 4.0)
    calm = play(6, requests)
    fates = play(6, requests, Choice.LEAST_OWN, ZoneLost(2_000.0, 60_000.0))
    lost = [r for r, f in zip(requests, fates, strict=True) if f.end is End.EXPIRED]
    assert not [f for f in calm if f.end is End.EXPIRED]
    assert 0 < len(lost) < 0.02 * len(requests)
    assert all(r.arrival_ms < 2_100.0 for r in lost)


@pytest.fixture(scope="module")
def met() -> Mapping[Choice, float]:
    """Return what each way to choose attains on one crowded trace."""
    requests = poisson(8, 0.8, 2.5)
    chosen = [c for c in Choice if c is not Choice.TWO_OWN]
    return {
        c: attained(requests, play(8, requests, c, poll_ms=500.0), 500.0, 2_500.0) for c in chosen
    }


def test_fresher_views_are_not_worse(met: Mapping[Choice, float]) -> None:
    """An old view sends everybody to the same Triton; one of this moment to the right one."""
    assert met[Choice.LEAST_ALL] > met[Choice.LEAST_POLLED]
    assert met[Choice.TWO_ALL] >= met[Choice.TWO_POLLED]


def test_two_choices_are_better_than_turns_where_all_is_seen(met: Mapping[Choice, float]) -> None:
    """With views that nobody has: the simulation finds what is known of the power of two choices."""
    assert met[Choice.TURNS] < met[Choice.TWO_ALL] <= met[Choice.LEAST_ALL]


def test_a_rollout_in_waves_is_felt_less_than_all_at_once() -> None:
    """Loading takes a core of each host; of all hosts at once, it is half of the fleet."""
    requests = poisson(6, 0.5, 8.0)
    together, waves = (
        play(6, requests, Choice.LEAST_OWN, Rollout(1_000.0, n, 1_100.0, 1_000.0)) for n in (1, 6)
    )
    worst = [
        min(attained(requests, fates, 500.0 * i, 500.0 * (i + 1)) for i in range(2, 15))
        for fates in (together, waves)
    ]
    assert worst[0] < worst[1] - 0.1


@dataclass(frozen=True)
class Server:
    """A server with some work."""

    name: str
    work_ms: float


def test_rules_choose_as_they_say() -> None:
    """The less busy of two different ones; turns; the least."""
    servers = [Server("a", 5.0), Server("b", 1.0), Server("c", 3.0)]
    draw = Random(1)
    drawn = Counter(less_busy_of_two(servers, draw).name for _ in range(300))
    assert set(drawn) == {"b", "c"}
    assert drawn["b"] > 1.5 * drawn["c"]
    assert less_busy_of_two(servers[:1], draw).name == "a"
    turns = [choose(Rule.TURNS, servers, n, draw).name for n in range(4)]
    assert turns == ["a", "b", "c", "a"]
    assert choose(Rule.LEAST, servers, 7, draw).name == "b"


@pytest.mark.parametrize(("hosts", "each"), [(1, 10), (7, 10), (30, 10), (12, 4)])
def test_every_triton_is_asked_by_as_many_gateways(hosts: int, each: int) -> None:
    """Where the subsets divide the fleet, none has more callers than another."""
    layout = Layout.of(hosts, each)
    asked = [layout.asked_by(gateway, seed=3) for gateway in range(hosts)]
    counts = Counter(n for one in asked for n in one)
    assert {len(set(one)) for one in asked} == {min(each, hosts)}
    assert set(counts.values()) == {min(each, hosts)}


def test_a_day_has_one_peak_and_its_slices_stand_for_all_of_it() -> None:
    """Rates follow the hour; every hour of the day is some slice's."""
    hours = day.hours(0.8, 100.0, 1_000)
    assert sum(piece.stands_for_s for piece in hours) == 24 * 3600
    peak = max(hours, key=lambda piece: piece.load)
    assert peak.hour == 16
    assert peak.load == pytest.approx(0.8)
    assert min(piece.load for piece in hours) == pytest.approx(0.8 * 0.2 / 1.8)
    few = day.hours(0.8, 100.0, 1_000, every_h=8)
    assert np.mean([p.load for p in few]) == pytest.approx(np.mean([p.load for p in hours]))
    assert all(sum(s.seconds * s.rate for s in p.segments) <= 1_000.1 for p in hours)


def test_arrivals_follow_their_rate() -> None:
    """A crowd is three times as dense."""
    times = day.arrivals([Segment(10.0, 100.0), Segment(10.0, 300.0)], np.random.default_rng(1))
    calm, crowd = (times < 10_000.0).sum(), (times >= 10_000.0).sum()
    assert calm == pytest.approx(1_000, rel=0.1)
    assert crowd == pytest.approx(3_000, rel=0.1)
    assert (np.diff(times) >= 0).all()


def test_a_days_price_is_shared_by_compute() -> None:
    """24 USD a day: three quarters to the class that used three quarters."""
    classes = {
        "dear": ClassFound(1e6, 1e6, 0.5e6, 3e7),
        "cheap": ClassFound(2e6, 2e6, 2e6, 1e7),
        "impossible": ClassFound(1e3, 0.0, 0.0, 0.0),
    }
    found = measures.costs(classes, 24.0)
    assert (found["dear"].per_million, found["dear"].per_million_met) == (18.0, 36.0)
    assert (found["cheap"].per_million, found["cheap"].per_million_met) == (3.0, 3.0)
    assert found["impossible"].per_million == 0.0
    assert np.isnan(found["impossible"].per_million_met)
    assert sum(c.share for c in found.values()) == 1.0


def test_a_day_is_its_slices_times_what_they_stand_for() -> None:
    """A slice of 10 s that stands for an hour counts 360 times."""
    one = ClassFound(10.0, 10.0, 9.0, 100.0)
    found = measures.day_of([({"a": one}, 360.0), ({"a": one}, 40.0)])
    assert (found["a"].n, found["a"].attained) == (4_000.0, 3_600.0)
    assert found["a"].share == 0.9


def test_the_assumed_gpu_is_faster_where_there_is_much_to_compute() -> None:
    """Time grows with layers and with the text; the host's own profile is not touched."""
    shape = world().catalog.variants[0].shape
    assert kinds.gpu_ms(shape, 384) > kinds.gpu_ms(shape, 64) >= shape.layers * kinds.LAUNCH_MS
    deeper = replace(shape, layers=2 * shape.layers)
    assert kinds.gpu_ms(deeper, 64) == pytest.approx(2 * kinds.gpu_ms(shape, 64))
    gpu = kinds.make("gpu", world(), 0.8)
    assert gpu.world.catalog.variants[0].profile.host.gpu == "assumed"
    assert gpu.world.cores == 1
    assert gpu.capacity_per_s > 0


def test_a_study_is_a_page_with_every_part() -> None:
    """A small one of three nearly idle hosts."""
    options = Options(hosts=(3,), requests=100, per_host=20, peak_load=0.05)
    study = Study(options, (kinds.make("cpu", world(), 0.1),), MIX)
    said: list[str] = []
    study.play(said.append)
    found = tables.all_of(study)
    assert [rows.title.split(":")[0] for rows in found] == [
        *("A day", "Choosing a Triton", "How old a view may be", "A lost zone"),
        *("A catalog rolls through the fleet", "Cost"),
    ]
    assert all(len(row) == len(rows.heads) for rows in found for row in rows.rows)
    text = page.html(study, {"seed": "17"})
    assert text.count("<svg") == 4
    assert "least of own" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hosts", "0"], "--hosts"),
        (["--hosts", "20000"], "--hosts"),
        (["--tritons-per-gateway", "0"], "--tritons-per-gateway"),
        (["--peak-load", "0"], "--peak-load"),
        (["--crowds", "-1"], "--crowds"),
        (["--requests", "5"], "--requests"),
        (["--poll-ms", "-1"], "--poll-ms"),
        (["--kinds", "tpu"], "there are cpu and gpu"),
        (["--price", "-1"], "--price"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_bad_flags_are_named(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is recorded or simulated."""
    assert cli.main(["fleet", *flags]) == 1
    assert said in capsys.readouterr().err


def test_options_are_checked_where_they_are_made() -> None:
    """Not only behind the command."""
    with pytest.raises(BadFleet, match="hosts"):
        Options(hosts=())


def test_the_check_asks_for_no_floor_that_the_small_catalog_lacks() -> None:
    """Two gateways and two Tritons run the smallest variants only."""
    catalog = world().catalog
    asked = (Class(0.9, slo(60.0, 0.99)), Class(0.1, slo(60.0, 0.999), feasible=False))
    feasible, impossible = served.mix_of(asked, catalog)
    assert feasible.slo.min_f1 == pytest.approx(catalog.best_floor - served.BELOW_BEST)
    assert impossible.slo.min_f1 == 0.999
