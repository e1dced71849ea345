"""The tests of certificates: no false alarms but the few that were allowed, and true ones soon."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.schema import Agreement, Confidence, Spread
from gateway.monitoring.sequential_tests import (
    BLOCK,
    OPEN_FOR,
    AgreementTest,
    BettingTest,
    Comparison,
    ConfidenceTest,
    SequentialTests,
    Texts,
    agreement_floors,
    compare,
    confidence_floors,
    share_floors,
)
from tests.fakes import HOST, make_plan, make_variant

DELTA = 0.05
EXPECTED = Agreement("large", 1000, 4000, 0.85, 0.82, 0.70, 0.66, HOST)
EDGES = tuple(k / 10 for k in range(1, 10))
EVEN = Confidence(
    EDGES, EDGES, tuple(e - 0.02 for e in EDGES), tuple(e + 0.02 for e in EDGES), 1000, 5000, HOST
)
COMPARISONS = st.lists(st.sampled_from(list(Comparison)), max_size=60)


def ever_reached(test: BettingTest, rates: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """Return by stream whether 1/DELTA was ever reached; `rates` (F,): of hits."""
    rng = np.random.default_rng(seed)
    reached = np.zeros(test.capital.shape, bool)
    for _ in range(steps):
        hits = rng.random((*test.capital.shape, len(rates))) < rates
        test.add(hits, ~hits)
        reached |= test.capital >= 1 / DELTA
    return reached


@pytest.mark.parametrize("seed", range(3))
def test_a_rate_at_its_floor_raises_no_more_alarms_than_allowed(seed: int) -> None:
    """Though looked at after each of 3,000 observations: 400 streams right at the edge of the null."""
    test = BettingTest((0.6, 0.9), streams=(400,))
    assert ever_reached(test, np.array([0.6, 0.9]), 3000, seed).mean() <= DELTA


@pytest.mark.parametrize(("burst", "alarms"), [(1, (0, DELTA)), (25, (0.5, 1))])
def test_samples_of_one_context_in_a_row_void_the_bound(
    burst: int, alarms: tuple[float, float]
) -> None:
    """A known limit: contexts differ, and 25 samples in a row of one are not 25 pieces of evidence."""
    rng, test = np.random.default_rng(6), BettingTest((0.6,), streams=(200,))
    reached = np.zeros(200, bool)
    for _ in range(1500 // burst):
        rate = rng.beta(3.6, 2.4, 200)  # 0.6 on average
        for _ in range(burst):
            hits = (rng.random(200) < rate)[:, None]
            test.add(hits, ~hits)
            reached |= test.capital >= 1 / DELTA
    assert alarms[0] <= reached.mean() <= alarms[1]


def expected_capital(floor: float, rate: float, steps: int = 10) -> float:
    """Return the exact mean of the capital, over all sequences of hits and misses at this rate."""
    test, chance = BettingTest((floor,), streams=(2**steps,)), np.ones(2**steps)
    for step in range(steps):
        hits = (np.arange(2**steps) >> step & 1).astype(bool)
        chance *= np.where(hits, rate, 1 - rate)
        test.add(hits[:, None], ~hits[:, None])
    return float(chance @ test.capital)


@given(st.floats(0.05, 0.95), st.floats(0, 1))
def test_a_bet_is_fair_at_the_floor_and_loses_above_it(floor: float, above: float) -> None:
    """What makes it a supermartingale under the null hypothesis, and the alarm's bound hold for ever."""
    assert expected_capital(floor, floor) == pytest.approx(1.0, abs=1e-9)
    assert expected_capital(floor, floor + above * (1 - floor)) <= 1 + 1e-9


def test_a_fallen_rate_is_found_in_every_stream() -> None:
    """Within hundreds of observations, whichever of the rates it is."""
    for rates in ([0.5, 0.95], [0.65, 0.8]):
        assert ever_reached(BettingTest((0.6, 0.9), streams=(100,)), np.array(rates), 1500, 2).all()


def test_a_rate_that_falls_late_is_found_nearly_as_soon() -> None:
    """Long agreement does not use up what a late shift is to be found with."""
    test = BettingTest((0.6,), streams=(100,))
    for _ in range(200):
        test.add(
            np.full((100, 1), 75), np.full((100, 1), 25)
        )  # 20,000 observations above the floor
    assert (test.capital < 1).all()
    assert ever_reached(test, np.array([0.45]), 1000, 3).all()


@given(COMPARISONS)
def test_two_silences_say_nothing(found: list[Comparison]) -> None:
    """Two variants that abstain agree, and would dilute every disagreement."""
    every, spoken = (AgreementTest(EXPECTED, DELTA, 0.02) for _ in range(2))
    for i, each in enumerate(found):
        rose = every.add(text(i), each)
        if each is not Comparison.BOTH_SILENT:
            spoken.add(text(i), each)
        else:
            assert not rose
    assert every.log10_e_value == spoken.log10_e_value
    assert every.seen.total() == len(found)


@given(COMPARISONS)
def test_a_disagreement_more_is_never_evidence_for_agreement(found: list[Comparison]) -> None:
    """Whatever was seen before."""
    agreed, differed = (AgreementTest(EXPECTED, DELTA, 0.02) for _ in range(2))
    for i, each in enumerate(found):
        agreed.add(text(i), each)
        differed.add(text(i), each)
    for i in range(OPEN_FOR):
        agreed.add(text(len(found) + i), Comparison.SAME)
        differed.add(text(len(found) + i), Comparison.DIFFERENT)
    assert differed.log10_e_value >= agreed.log10_e_value


def test_a_broken_certificate_stays_broken() -> None:
    """Good days after it prove nothing; it says so once."""
    test = AgreementTest(EXPECTED, DELTA, 0.02)
    rose = [test.add(text(i), Comparison.DIFFERENT) for i in range(80)]
    assert rose.count(True) == 1
    assert test.log10_e_value >= test.log10_alarm
    for i in range(2000):
        assert not test.add(text(100 + i), Comparison.SAME)
    assert test.broken


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ("Ada", "Ada", Comparison.SAME),
        ("Ada", "Ada came", Comparison.DIFFERENT),
        ("Ada", "", Comparison.ONE_SILENT),
        ("", "Ada", Comparison.ONE_SILENT),
        ("", "", Comparison.BOTH_SILENT),
    ],
)
def test_answers_are_compared_as_texts(ours: str, theirs: str, found: Comparison) -> None:
    """The same words from elsewhere in the context are the same answer."""
    assert compare(ours, theirs) is found


def test_confidence_as_certified_raises_no_alarm_and_another_does() -> None:
    """A variant that is less sure of what it is asked sees other questions."""
    rng = np.random.default_rng(4)
    for shift, shifted in ((0.0, False), (-0.2, True), (0.2, True)):
        test = ConfidenceTest(EVEN, DELTA)
        for i, confidence in enumerate(np.clip(rng.random(4000) + shift, 0, 1)):
            test.add(text(i), float(confidence), 60)
        assert test.shifted is shifted


def test_confidence_is_judged_block_by_block() -> None:
    """An answer costs a count; the bets are taken every so many."""
    test = ConfidenceTest(EVEN, DELTA)
    news = [test.add(text(i), 0.5, 60) for i in range(2 * BLOCK + OPEN_FOR - 1)]
    assert news == [False] * (OPEN_FOR - 1) + ([False] * (BLOCK - 1) + [True]) * 2


def test_a_test_continues_until_its_plan_is_certified_again() -> None:
    """A switch that leaves a plan as it was forgets nothing of it; a new certificate is a new start."""
    small, other = make_variant("small", 5), make_variant("other", 6)
    plans = [replace(make_plan(v, 0.5), agreement=EXPECTED) for v in (small, other)]
    certificate_tests = SequentialTests(DELTA)
    certificate_tests.follow(plans, [small, other])
    for plan in plans:
        rose = [
            certificate_tests.compared(plan.name, text(i), Comparison.DIFFERENT) for i in range(80)
        ]
        assert rose.count(True) == 1
    assert certificate_tests.broken == {"small", "other"}
    again = replace(plans[1].certificate, f1=0.55)
    certificate_tests.follow([plans[0], replace(plans[1], certificate=again)], [small, other])
    assert certificate_tests.broken == {"small"}
    assert certificate_tests.agreement["other"].seen.total() == 0


def test_of_a_plan_without_expected_agreement_nothing_is_learnt() -> None:
    """Catalogs of earlier studies do not say what to expect."""
    plan = make_plan(make_variant("small", 5), 0.5)
    certificate_tests = SequentialTests(DELTA)
    certificate_tests.follow([plan], [])
    assert not any(
        certificate_tests.compared("small", text(i), Comparison.DIFFERENT) for i in range(100)
    )
    assert certificate_tests.broken == frozenset()


def text(number: int) -> bytes:
    return number.to_bytes(4)


@pytest.mark.parametrize("questions", [1, 20])
def test_many_questions_on_one_text_raise_no_false_alarm(questions: int) -> None:
    """Texts differ in how hard they are: questions on one are answered alike, and are one observation.

    Counted one by one, twenty questions on a text raise one in most of these streams.
    """
    rng = np.random.default_rng(11)
    floor = EXPECTED.same_answer_floor - 0.02
    alarms = 0
    for _ in range(100):
        test = AgreementTest(EXPECTED, DELTA, 0.02)
        rates = rng.beta(2 * floor, 2 * (1 - floor), 60)
        for i, rate in enumerate(np.repeat(rates, questions)):
            same = rng.random() < rate
            test.add(text(i // questions), Comparison.SAME if same else Comparison.DIFFERENT)
        alarms += test.broken
    assert alarms <= DELTA * 100


def test_a_text_that_comes_again_says_nothing_new() -> None:
    """One that is asked about all day is still one text."""
    test = AgreementTest(EXPECTED, DELTA, 0.02)
    for i in range(40):
        test.add(text(i % 4), Comparison.DIFFERENT)
    once = test.log10_e_value
    assert once > 0
    for i in range(400):
        test.add(text(i % 4), Comparison.DIFFERENT)
    assert test.log10_e_value == once


def test_confidence_is_judged_among_texts_of_the_same_length() -> None:
    """Load moves long texts to other variants; that a variant is asked short ones only is no shift."""
    steps = np.linspace(0.1, 0.9, 9)
    long, short = (
        Spread(most, tuple(share), tuple(share - 0.03), tuple(share + 0.03), 500)
        for most, share in ((10**9, np.sqrt(steps)), (256, steps**2))
    )
    both = replace(EVEN, edges=tuple(steps), by_length=(short, long))
    alone = replace(both, by_length=())
    rng = np.random.default_rng(3)
    judged, blind = ConfidenceTest(both, DELTA), ConfidenceTest(alone, DELTA)
    for i, confidence in enumerate(np.sqrt(rng.random(4000))):
        for test in (judged, blind):
            test.add(text(i), float(confidence), 100)
    assert (judged.shifted, blind.shifted) == (False, True)


def test_one_observation_can_be_worked_out_by_hand() -> None:
    """What is staked loses the mean shortfall at a hit, and wins it, at a floor of 1/2, at a miss."""
    reserve, mean = 1 / (1 + math.log(1.01)), (0.04 + 0.08 + 0.16 + 0.32 + 0.64) / 5
    for hits, won in ((1, 1 - mean), (0, 1 + mean)):
        test = BettingTest((0.5,))
        assert test.capital == 1
        test.add([hits], [1 - hits])
        assert test.capital == pytest.approx(reserve + (1 - reserve) * won)
    of_two = BettingTest((0.5, 0.8))
    of_two.add([0, 0], [0, 1])
    won = 1 + mean * 0.8 / 0.2
    assert of_two.capital == pytest.approx((1 + reserve + (1 - reserve) * won) / 2)
    nothing = BettingTest((0.5,))
    nothing.add([0], [0])
    assert nothing.capital == 1


def test_a_floor_of_one_and_endless_misses_are_finite() -> None:
    """A single miss of what is said to be certain is strong evidence, and no error."""
    test = BettingTest((1.0,))
    test.add([0], [1])
    assert 1 < test.capital < 1000
    for _ in range(300):
        test.add([0], [1])
    assert np.isfinite(test.capital)
    assert test.capital > 1e250
    below = BettingTest((-0.5,))
    below.add([0], [1])
    assert below.capital == 1


def test_the_rates_are_those_of_the_certificate_less_what_is_allowed() -> None:
    """Of confidence: the shares up to each edge, and above each."""
    assert agreement_floors(EXPECTED, 0.02) == pytest.approx([0.80, 0.64])
    part = Spread(256, (0.5, 0.6), (0.4, 0.5), (0.7, 0.8), 100)
    floors = [0.35, 0.45, 0.25, 0.15]
    assert share_floors(part) == pytest.approx(floors)
    split = replace(EVEN, by_length=(part, part))
    assert confidence_floors(split) == [share_floors(part)] * 2
    assert confidence_floors(EVEN) == [share_floors(EVEN)]


def test_a_text_is_gathered_and_counts_once_by_its_shares() -> None:
    """Sixteen observations of any text after its first, then never again."""
    texts = Texts()
    assert texts.add(b"a", [1, 0], [0, 1]) == []
    assert texts.add(b"a", [0, 1], [0, 0]) == []
    for i in range(OPEN_FOR - 3):
        assert texts.add(text(i), [1, 1], [0, 0]) == []
    ((hits, misses),) = texts.add(b"a", [0, 1], [1, 0])
    assert hits.tolist() == [1 / 2, 2 / 3]
    assert misses.tolist() == [1 / 2, 1 / 3]
    assert texts.add(b"a", [0, 0], [1, 1]) == []
    ((hits, misses),) = texts.add(b"a", [0, 0], [1, 1])  # closes the next one, and says nothing
    assert (hits.tolist(), misses.tolist()) == ([1, 1], [0, 0])
    silent = Texts()
    found = [silent.add(b"a", [0, 1], [0, 0]) for _ in range(OPEN_FOR)][-1]
    assert [[part.tolist() for part in each] for each in found] == [[[0, 1], [0, 0]]]


def test_so_many_texts_are_remembered() -> None:
    """Memory is bounded: a text that comes again after as many others counts as a new one."""
    texts = Texts(most=2)

    def times_counted(text: bytes) -> int:
        return sum(len(texts.add(text, [1], [0])) for _ in range(OPEN_FOR))

    assert [times_counted(each) for each in (b"a", b"b", b"c", b"b", b"a")] == [1, 1, 1, 0, 1]


@pytest.mark.parametrize(("share", "shifted"), [(0.9, True), (1.1, False)])
def test_confidence_has_shifted_once_the_evidence_is_one_in_delta(
    share: float, shifted: bool
) -> None:
    """No later: a variant that is shifted is not trusted."""
    found = 10 ** judged(DELTA, 0.0).log10_e_value
    assert found > 2
    assert judged(1 / (share * found), 0.0).shifted is shifted


def judged(delta: float, confidence: float) -> ConfidenceTest:
    """Return the test of one of two variants after a block of answers of this confidence."""
    tests = SequentialTests(2 * delta)
    tests.follow([], [replace(make_variant(name, 5), confidence=EVEN) for name in ("a", "b")])
    test = tests.confidence["a"]
    for i in range(BLOCK + OPEN_FOR - 1):
        test.add(text(i), confidence, 60)
    return test


def test_a_confidence_at_an_edge_is_of_the_share_up_to_it() -> None:
    """As it was counted when the shares were certified."""
    at, below, above = (judged(DELTA, confidence).log10_e_value for confidence in (0.3, 0.25, 0.35))
    assert at == below != above


def test_the_alarm_shares_delta_among_what_is_tested() -> None:
    """So that the chance of any false one is delta; a plan without expectations takes no share."""
    variants = [replace(make_variant(name, 5), confidence=EVEN) for name in ("a", "b")]
    plans = [replace(make_plan(v, 0.5), agreement=EXPECTED) for v in variants]
    tests = SequentialTests()
    tests.follow([*plans, make_plan(make_variant("c", 5), 0.5)], [*variants, make_variant("c", 5)])
    assert sorted(tests.agreement) == sorted(tests.confidence) == ["a", "b"]
    assert tests.agreement["a"].log10_alarm == pytest.approx(math.log10(40))
    assert tests.agreement["a"].log10_e_value == 0.0
    alone = AgreementTest(EXPECTED, 1 / 40, 0.02)
    for i in range(60):
        found = Comparison.DIFFERENT if i % 3 else Comparison.SAME
        assert tests.compared("a", text(i), found) == alone.add(text(i), found)
    assert tests.agreement["a"].log10_e_value == alone.log10_e_value > 0
    halves = tests.confidence["a"], ConfidenceTest(EVEN, 1 / 40)
    for i in range(4 * BLOCK):
        assert halves[0].add(text(i), 0.0, 9) == halves[1].add(text(i), 0.0, 9)
        assert tests.is_shifted("a") == halves[1].shifted
    assert tests.is_shifted("a")
    assert not tests.is_shifted("b")
    assert not tests.is_shifted("unknown")
    kept = tests.confidence["a"]
    tests.follow(plans, [variants[0], replace(variants[1], confidence=replace(EVEN, n_contexts=9))])
    assert tests.confidence["a"] is kept
    assert not tests.confidence["b"].shifted
    tests.follow(plans, [replace(variants[0], confidence=replace(EVEN, n_contexts=9))])
    assert not tests.is_shifted("a")


@pytest.mark.parametrize(("n_tokens", "judged"), [(256, True), (257, False), (9999, False)])
def test_a_length_is_judged_by_the_part_that_it_belongs_to(n_tokens: int, judged: bool) -> None:
    """Up to 256 tokens, by the first; longer than any part, by the last."""
    sure = Spread(256, (0.1,), (0.05,), (0.15,), 500)
    unsure = Spread(512, (0.9,), (0.85,), (0.95,), 500)
    both = ConfidenceTest(replace(EVEN, edges=(0.5,), by_length=(sure, unsure)), DELTA)
    for i in range(4 * BLOCK):
        both.add(text(i), 0.4, n_tokens)
    assert both.shifted is judged
    assert (both.log10_e_value > 0) is judged
