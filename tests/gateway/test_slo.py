"""The grammar of SLO headers, and the defaults of classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import slo
from gateway.domain import Slo, SloPolicy, SloRequest
from gateway.errors import Forbidden, InvalidHeader, UnknownClass
from gateway.slo import STANDARD_CLASSES, SloClass


def parse(headers: dict[str, str]) -> SloRequest:
    def lookup(name: str) -> str | None:
        return headers.get(name)

    return slo.parse(lookup)


def resolve(request: SloRequest) -> Slo:
    return slo.resolve(request, STANDARD_CLASSES, "standard", best_floor=0.7)


@pytest.mark.parametrize(
    ("name", "value", "field", "meant"),
    [
        ("slo-latency-ms", "50", "latency_ms", 50.0),
        ("slo-latency-ms", " 12.5 ", "latency_ms", 12.5),
        ("slo-latency-ms", "60000", "latency_ms", 60_000.0),
        ("slo-latency-ms", "1", "latency_ms", 1.0),
        ("slo-min-f1", "0", "min_f1", 0.0),
        ("slo-min-f1", ".75", "min_f1", 0.75),
        ("slo-max-f1-loss", "0.02", "max_f1_loss", 0.02),
        ("slo-max-f1-loss", "1", "max_f1_loss", 1.0),
        ("slo-min-answerable-f1", "0.5", "min_answerable_f1", 0.5),
        ("slo-class", "batch", "slo_class", "batch"),
        ("slo-policy", "strict", "policy", SloPolicy.STRICT),
        *(("priority", f"u={u}", "priority", u) for u in range(8)),
        ("priority", "i, u=7", "priority", 7),
        ("priority", "i", "priority", 3),
        ("priority", "", "priority", 3),
        ("priority", "u=1,i=?0", "priority", 1),
        ("priority", 'u=4;why="a, u=9" , x=tok/en;a;b=:aGk=:, y=-1.5', "priority", 4),
        ("priority", "u=1, u=6", "priority", 6),
        ("slo-policy", "strict\t", "policy", SloPolicy.STRICT),
        ("slo-class", " batch", "slo_class", "batch"),
        ("slo-variant", "small", "variant", "small"),
        ("slo-explain", "1", "explain", True),
        ("slo-explain", "0", "explain", False),
        ("x-envoy-expected-rq-timeout-ms", "15", "timeout_ms", 15.0),
        ("x-envoy-expected-rq-timeout-ms", "1", "timeout_ms", 1.0),
        ("x-envoy-expected-rq-timeout-ms", "0.5", "timeout_ms", 0.5),
        ("x-envoy-expected-rq-timeout-ms", "0", "timeout_ms", None),
    ],
)
def test_a_header_means_its_field(name: str, value: str, field: str, meant: object) -> None:
    """The contract of docs/reference/api.md, header by header."""
    assert getattr(parse({name: value}), field) == meant


@pytest.mark.parametrize(
    "value",
    [
        *("5", "u", "u=", "u=8", "u=-1", "u=3.0", "u=05", 'u="5"', "u=?1", "u = 5", "U=5", "u=5 i"),
        *(
            "u=5,",
            ",",
            "u=5,,i",
            "u=5;",
            "u=\u0665",
            "i=1",
            "i=yes",
            "u=9, u=",
            'x="',
            "u=5\xa0",
            "u:5",
        ),
    ],
)
def test_a_priority_that_is_no_dictionary_is_refused(value: str) -> None:
    """What is not understood must not pass for the default urgency."""
    with pytest.raises(InvalidHeader) as refused:
        parse({"priority": value})
    assert str(refused.value) == f"Priority: {value!r} is not allowed; allowed: {slo.PRIORITY}"
    assert "u=0 to u=7" in slo.PRIORITY


LATENCY = "SLO-Latency-Ms", "a decimal from 1 to 60000"
FLOOR = "SLO-Min-F1", "a decimal from 0 to 1"
POLICY = "SLO-Policy", "strict, prefer-latency, prefer-accuracy"
EXPLAIN = "SLO-Explain", "0 or 1"
ENVOY = "x-envoy-expected-rq-timeout-ms", "a decimal from 0 to 1e+09"
REFUSED = [
    (LATENCY, ("\u0665\u0660", "50\xa0", "5e1", "+50", "50ms", "1_000", "50,60", "0.9", "60001")),
    (FLOOR, ("", "0,5", "-0", "1.0000000001", "1.5", "nan", "\u0966.\u096b")),
    (("SLO-Max-F1-Loss", FLOOR[1]), ("1.5",)),
    (("SLO-Min-Answerable-F1", FLOOR[1]), ("1.5",)),
    (POLICY, ("", "Strict", "strict\xa0", "strict, strict")),
    (EXPLAIN, ("", "true", "01", "\uff11")),
    (ENVOY, ("", "\u0665", "-1", "1e3", "\x1c15")),
]


@pytest.mark.parametrize(
    ("header", "value"), [(header, value) for header, values in REFUSED for value in values]
)
def test_what_is_not_in_the_grammar_is_refused(header: tuple[str, str], value: str) -> None:
    """Python reads more spellings of a number, and more kinds of space, than HTTP has."""
    name, allowed = header
    with pytest.raises(InvalidHeader) as refused:
        parse({name.lower(): value})
    assert str(refused.value) == f"{name}: {value!r} is not allowed; allowed: {allowed}"


def test_no_header_says_nothing() -> None:
    """What is absent is the class's to say."""
    assert parse({}) == SloRequest()


@given(st.text(max_size=30))
def test_a_number_is_in_range_or_refused(text: str) -> None:
    """Nothing is clamped, and no text slips through as NaN or infinity."""
    try:
        latency_ms = parse({"slo-latency-ms": text}).latency_ms
    except InvalidHeader:
        return
    assert latency_ms is not None
    assert 1 <= latency_ms <= 60_000


@given(st.floats(min_value=0, max_value=1))
def test_every_floor_can_be_said(floor: float) -> None:
    """With nine decimals."""
    found = parse({"slo-min-f1": f"{floor:.9f}"}).min_f1
    assert found == pytest.approx(floor, abs=1e-9)


@pytest.mark.parametrize(
    ("request_", "latency_ms", "min_f1", "policy", "timeout_ms"),
    [
        (SloRequest(), 250, 0.68, SloPolicy.PREFER_LATENCY, 1000),
        (SloRequest(slo_class="interactive"), 50, 0.5, SloPolicy.PREFER_LATENCY, 200),
        (SloRequest(slo_class="batch"), 5000, 0.68, SloPolicy.PREFER_ACCURACY, 20_000),
        (SloRequest(latency_ms=10), 10, 0.68, SloPolicy.PREFER_LATENCY, 40),
        (SloRequest(min_f1=0.0), 250, 0.0, SloPolicy.PREFER_LATENCY, 1000),
        (SloRequest(policy=SloPolicy.STRICT), 250, 0.68, SloPolicy.STRICT, 250),
        (SloRequest(timeout_ms=30), 250, 0.68, SloPolicy.PREFER_LATENCY, 30),
        (SloRequest(timeout_ms=9999), 250, 0.68, SloPolicy.PREFER_LATENCY, 1000),
    ],
)
def test_a_class_fills_in_what_is_absent(
    request_: SloRequest, latency_ms: float, min_f1: float, policy: SloPolicy, timeout_ms: float
) -> None:
    """The deadline is the tightest of what all parties said."""
    resolved = resolve(request_)
    assert (resolved.latency_ms, resolved.policy) == (latency_ms, policy)
    assert resolved.min_f1 == pytest.approx(min_f1)
    assert resolved.timeout_ms == timeout_ms


@pytest.mark.parametrize("name", ["gold", "", "Standard"])
def test_an_unknown_class_is_refused_with_the_known(name: str) -> None:
    """The caller sees what may be said."""
    with pytest.raises(UnknownClass, match="batch, interactive, standard"):
        resolve(SloRequest(slo_class=name))


def test_a_loss_alone_takes_the_place_of_the_default_floor() -> None:
    """`at most 0.05 below the largest` would otherwise mean `best floor - 0.02` as well."""
    assert resolve(SloRequest()).min_f1 == pytest.approx(0.68)
    asked = resolve(SloRequest(max_f1_loss=0.05))
    assert (asked.max_f1_loss, asked.min_f1) == (0.05, 0.0)
    both = resolve(SloRequest(max_f1_loss=0.05, min_f1=0.6))
    assert (both.max_f1_loss, both.min_f1) == (0.05, 0.6)


def test_a_floor_of_a_kind_takes_the_place_of_the_default_floor() -> None:
    """Whoever asks for answerable questions has said which floor matters."""
    asked = resolve(SloRequest(min_answerable_f1=0.5))
    assert (asked.min_answerable_f1, asked.min_f1) == (0.5, 0.0)
    both = resolve(SloRequest(min_answerable_f1=0.5, min_f1=0.6))
    assert (both.min_answerable_f1, both.min_f1) == (0.5, 0.6)


def test_what_a_request_says_is_what_it_gets() -> None:
    """Nothing of it is lost on the way to the policy."""
    said: dict[str, Any] = {
        "latency_ms": 80.0,
        "min_f1": 0.6,
        "slo_class": "batch",
        "policy": SloPolicy.STRICT,
        "priority": 1,
        "variant": "small",
        "explain": True,
        "timeout_ms": 70.0,
        "max_f1_loss": 0.05,
        "min_answerable_f1": 0.5,
    }
    assert resolve(SloRequest(**said)) == Slo(**said)


def test_a_class_may_have_a_deadline_of_its_own() -> None:
    """Its factor of the target is for classes that say nothing; `strict` has the target alone."""
    classes = {"patient": SloClass(100.0, SloPolicy.PREFER_LATENCY, timeout_ms=900.0)}
    for policy, timeout_ms in ((None, 900.0), (SloPolicy.STRICT, 100.0)):
        found = slo.resolve(SloRequest(policy=policy), classes, "patient", best_floor=0.7)
        assert found.timeout_ms == timeout_ms


def test_a_floor_below_the_best_is_never_negative() -> None:
    """Where the best variant is hardly certified, any will do."""
    found = slo.resolve(SloRequest(), STANDARD_CLASSES, "interactive", best_floor=0.05)
    assert found.min_f1 == 0.0


def test_a_key_may_be_bound_to_the_latency_of_a_class() -> None:
    """Whoever did not pay for `interactive` does not get its latency by a header or by its name."""
    bound = SloRequest(latency_ms=250.0, tightest_class="standard")
    assert resolve(bound).latency_ms == 250.0
    with pytest.raises(Forbidden) as refused:
        resolve(replace(bound, latency_ms=249.5))
    assert str(refused.value) == (
        "SLO-Latency-Ms: 249.5 is not allowed with this key; allowed: from 250, the class standard"
    )
    with pytest.raises(Forbidden, match="50 is not allowed"):
        resolve(replace(bound, latency_ms=None, slo_class="interactive"))


def test_a_class_may_bound_the_loss() -> None:
    """With a floor of its own, both hold."""
    classes = {"close": SloClass(50, SloPolicy.STRICT, min_f1=0.4, max_f1_loss=0.01)}
    resolved = slo.resolve(SloRequest(slo_class="close"), classes, "close", best_floor=0.7)
    assert (resolved.max_f1_loss, resolved.min_f1) == (0.01, 0.4)


def gold(latency_ms: float = 50, **fields: float) -> SloClass:
    return SloClass(latency_ms, SloPolicy.STRICT, **fields)


NAMES = (
    "use 1 to 64 letters, digits and . _ - that start with a letter or digit; unknown is reserved"
)
PROBLEMS = [
    *(
        (name, gold(), f"{name!r} is not a valid class name: {NAMES}")
        for name in ("", "a b", "unknown")
    ),
    ("gold", gold(0.5), "gold.latency_ms is 0.5, it must be from 1 to 60000 ms"),
    ("gold", gold(60_001), "gold.latency_ms is 60001, it must be from 1 to 60000 ms"),
    ("gold", gold(min_f1=1.5), "gold.min_f1 is 1.5, it must be from 0 to 1"),
    ("gold", gold(below_best=1.5), "gold.below_best is 1.5, it must be from 0 to 1"),
    ("gold", gold(max_f1_loss=-0.5), "gold.max_f1_loss is -0.5, it must be from 0 to 1"),
    ("gold", gold(max_f1_loss=1.5), "gold.max_f1_loss is 1.5, it must be from 0 to 1"),
    (
        "gold",
        gold(timeout_ms=49),
        "gold.timeout_ms is 49, it must be from latency_ms, 50 to 1e+09 ms",
    ),
]


@pytest.mark.parametrize(("name", "defaults", "problem"), PROBLEMS)
def test_what_is_wrong_with_a_class_is_said(name: str, defaults: SloClass, problem: str) -> None:
    """Its writer sees which value, and what it may be."""
    assert slo.class_problem(name, defaults) == problem


@pytest.mark.parametrize(
    "defaults",
    [
        *(gold(1), gold(60_000), gold(timeout_ms=50), gold(timeout_ms=1e9)),
        gold(min_f1=0, below_best=0, max_f1_loss=0),
        gold(min_f1=1, below_best=1, max_f1_loss=1),
        gold(min_f1=0.5),
    ],
)
def test_the_ends_of_every_range_are_allowed(defaults: SloClass) -> None:
    """`from 1 to 60000` includes both."""
    assert slo.class_problem("gold", defaults) is None


def test_classes_with_equal_values_are_found() -> None:
    """By their defaults, or by names that differ in case only."""
    classes = {"b": gold(), "a": gold(), "c": gold(60), "d": gold()}
    assert slo.equal_classes(classes) == [("a", "b"), ("a", "d"), ("b", "d")]
    assert slo.same_but_for_case(["gold", "Silver", "GOLD"]) == ("gold", "GOLD")
    assert slo.same_but_for_case(["gold", "silver", "gold"]) is None


def test_the_longest_deadline_is_that_of_the_most_patient_class() -> None:
    """A request may set four times the longest target in any class."""
    assert slo.longest_timeout_ms({"a": gold(), "b": gold(timeout_ms=100)}) == 240_000
    assert slo.longest_timeout_ms({"a": gold(), "b": gold(timeout_ms=1e6)}) == 1e6
