"""A certificate part by part, and what became of it on other data."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.certify import betting_floor
from optimizer.data import Example
from optimizer.strata import ALL, Scored, checks_of, is_fresh, shift, split, strata_of

DELTA = 0.1


def scored(
    n_contexts: int,
    *,
    name: str = "calibrate",
    unanswerable: int = 1,
    has_f1: float = 0.6,
    no_f1: float = 0.8,
    tokens: tuple[int, ...] = (100, 200, 300),
    seed: int = 0,
) -> Scored:
    """Return contexts of two answerable and some unanswerable questions; their F1 is right or not."""
    rng = np.random.default_rng(seed)
    examples, lengths, f1 = [], [], []
    for c in range(n_contexts):
        for q in range(2 + unanswerable):
            answers = ("x",) if q < 2 else ()
            examples.append(Example(f"{c}-{q}", "q", f"{name} {c}", answers, (), ""))
            lengths.append(tokens[c % len(tokens)])
            f1.append(float(rng.uniform() < (has_f1 if answers else no_f1)))
    return Scored(name, examples, np.array(lengths), np.array(f1))


def test_strata_cover_every_question_twice() -> None:
    """Once by kind and once by length."""
    whole = scored(30)
    sizes = {name: len(part.examples) for name, part in whole.strata.items()}
    assert sizes == {
        "answerable": 60,
        "unanswerable": 30,
        "to 128 tokens": 30,
        "129 to 256 tokens": 30,
        "over 256 tokens": 30,
    }


def test_a_stratum_without_questions_is_left_out() -> None:
    """Nothing can be certified of nothing."""
    parts = strata_of(scored(30, unanswerable=0, tokens=(128,)), betting_floor, DELTA)
    assert [part.name for part in parts] == ["answerable", "to 128 tokens"]


def test_the_strata_share_delta() -> None:
    """Their floors hold jointly, so each has to be surer than one alone."""
    whole = scored(200)
    part = strata_of(whole, betting_floor, DELTA)[0]
    alone = betting_floor(whole.strata["answerable"].means, DELTA)
    assert part.floor < alone < part.f1


def test_a_fifth_of_the_contexts_is_kept_from_the_floors() -> None:
    """Whole contexts, by hash: the same for every variant and every run."""
    certified, fresh = split(scored(2000))
    assert len(fresh.means) / 2000 == pytest.approx(0.2, abs=0.03)
    assert all(is_fresh(e.context) for e in fresh.examples)
    assert not {e.context for e in fresh.examples} & {e.context for e in certified.examples}


def test_floors_hold_on_fresh_contexts() -> None:
    """What the fifth is kept for."""
    certified, fresh = split(scored(1500))
    floors = {s.name: s.floor for s in strata_of(certified, betting_floor, DELTA)}
    floors[ALL] = betting_floor(certified.means, DELTA)
    checks = list(checks_of(certified, fresh, floors, betting_floor, DELTA))
    assert {check.stratum for check in checks} == set(floors)
    assert {check.verdict for check in checks} == {"holds"}
    assert not any(check.shift for check in checks)


def test_a_floor_that_fails_elsewhere_names_the_shift() -> None:
    """A reader must know whether the model is worse there, or the questions are others."""
    here = scored(800, has_f1=0.3, no_f1=0.9, unanswerable=2)
    there = scored(800, name="elsewhere", has_f1=0.3, no_f1=0.9, unanswerable=0)
    check = next(checks_of(here, there, {ALL: 0.55}, betting_floor, DELTA))
    assert check.verdict == "fails"
    assert check.shift.startswith("100% answerable instead of 50%")
    assert ";" not in check.shift


def test_worse_answers_are_told_from_another_mix() -> None:
    """Of the same mix with worse answers, the part that is answered worse is named."""
    here, there = scored(800), scored(800, name="elsewhere", has_f1=0.3)
    found = shift(here, there, ALL)
    assert found.startswith("answerable: F1 0.")
    assert "unanswerable" not in found


def test_a_shift_inside_a_kind_is_looked_for_in_the_lengths() -> None:
    """Answerable questions differ in length, not in kind."""
    here = scored(400, tokens=(100,))
    there = scored(400, name="elsewhere", has_f1=0.2, tokens=(300,))
    found = shift(here.strata["answerable"], there.strata["answerable"], "answerable")
    assert "over 256 tokens: F1 0.1" in found or "over 256 tokens: F1 0.2" in found


def test_the_effects_of_a_shift_add_up() -> None:
    """Mix and parts explain the difference of the means exactly."""
    here = scored(300, unanswerable=3, has_f1=0.7)
    there = scored(300, name="elsewhere", unanswerable=1, has_f1=0.4, no_f1=0.5)
    effects = [
        float(text.rsplit("(", 1)[1].rstrip(")")) for text in shift(here, there, ALL).split("; ")
    ]
    assert sum(effects) == pytest.approx(there.means.mean() - here.means.mean(), abs=0.06)
