"""A certificate part by part, and what became of it on other data."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gateway.catalog.schema import Check, Stratum
from optimizer.certify.bounds import betting_floor
from optimizer.certify.strata import (
    ALL,
    EVERY,
    TITLED,
    Scored,
    checks_of,
    floors_of,
    held_out,
    rounded_down,
    scope_shares,
    shift,
    split,
    strata_of,
)
from optimizer.data import question_sets
from optimizer.data.question_sets import Example

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


def titled(part: Scored, n_articles: int, n_mixed: int = 0) -> Scored:
    """Return the contexts as parts of so many articles, the first `n_mixed` of unknown ones."""
    place = [int(e.context.split()[-1]) for e in part.examples]
    titles = [question_sets.MIXED_ARTICLES if c < n_mixed else f"a{c % n_articles}" for c in place]
    examples = [replace(e, title=t) for e, t in zip(part.examples, titles, strict=True)]
    return replace(part, examples=examples)


def test_a_fifth_of_the_contexts_is_kept_from_the_floors() -> None:
    """Whole contexts where no article is known, by hash: the same for every variant and every run."""
    certified, held = split(scored(2000))
    assert len(held.means) / 2000 == pytest.approx(0.2, abs=0.03)
    assert held_out(held.examples).all()
    assert held.name == "held-out contexts"
    assert not {e.context for e in held.examples} & {e.context for e in certified.examples}


def test_held_out_checks_use_articles_that_no_floor_was_made_from() -> None:
    """A context of an article that made a floor is no fresh evidence: contexts of one are alike."""
    certified, held = split(titled(scored(2000), 200, n_mixed=500))
    kept, made = ({e.title for e in part.examples} for part in (held, certified))
    assert held.name == "held-out articles"
    assert 20 <= len(kept) <= 60
    assert question_sets.MIXED_ARTICLES not in kept
    assert not kept & made


def test_of_one_article_five_contexts_count() -> None:
    """However long it is, it is one value of the certificate."""
    certified, held = split(titled(scored(1200), 120))
    for part in (certified, held):
        contexts = {(e.title, e.context) for e in part.examples}
        assert set(Counter(title for title, _ in contexts).values()) == {5}
    assert len(certified.means) + len(held.means) == 120


def test_which_articles_are_held_out_never_changes() -> None:
    """A certificate of the next version is checked on what made no floor of this one; from a hundred on."""
    of_100 = {0, 1, 2, 8, 11, 18, 20, 29, 32, 38, 41, 43, 45, 47, 57, 61, 62, 66, 74, 87}
    held = {e.title for e in split(titled(scored(100), 100))[1].examples}
    assert held == {f"a{i}" for i in of_100}
    assert not split(titled(scored(99), 99))[1].examples


def test_few_articles_all_make_floors() -> None:
    """A fifth of twenty checks nothing: its upper bound lies above any floor. Without it floors are lower."""
    certified, held = split(titled(scored(600), 20, n_mixed=300))
    assert not held.examples
    assert len(certified.scopes[TITLED].means) == 20


def test_a_scope_of_few_clusters_gets_most_of_delta() -> None:
    """All scopes together spend what the claim may; the floor of few unseen articles rises."""
    certified, _ = split(titled(scored(900), 50, n_mixed=600))
    each, n_clusters = scope_shares(certified, DELTA), len(certified.means)
    assert sum(each.values()) == pytest.approx(DELTA)
    assert each[TITLED] / each[EVERY] == pytest.approx(n_clusters / 50)
    floors, few = floors_of(certified, betting_floor, DELTA), certified.scopes[TITLED].means
    assert floors[TITLED] > betting_floor(few, DELTA / 2)


def test_floors_are_made_for_all_clusters_and_for_titled_articles_alone() -> None:
    """Contexts of unknown articles may be of articles that were partly trained on."""
    certified, _ = split(titled(scored(900), 50, n_mixed=600))
    scopes = certified.scopes
    assert list(scopes) == [EVERY, TITLED]
    assert len(scopes[TITLED].means) == len({e.title for e in certified.examples}) - 1
    assert list(split(scored(50))[0].scopes) == [EVERY]


def test_the_floor_of_a_kind_is_the_lower_of_both_scopes() -> None:
    """Routing uses it for articles that no model has seen, too."""
    certified, _ = split(titled(scored(900), 50, n_mixed=600))
    found = next(s for s in strata_of(certified, betting_floor, DELTA) if s.name == "answerable")
    part = certified.strata["answerable"]
    share = DELTA / (
        1 + 50 / len(part.means)
    )  # of 50 articles; the scopes spend in inverse to their sizes
    alone = betting_floor(part.scopes[TITLED].means, share)
    of_all = betting_floor(part.means, DELTA - share)
    assert found.floor == pytest.approx(min(alone, of_all), abs=1e-4)


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


def test_worse_answers_are_distinguished_from_another_mix() -> None:
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


def by_hand(name: str, f1: tuple[float, ...], n_answerable: int, tokens: tuple[int, ...]) -> Scored:
    """Return one question a context; the first ones can be answered."""
    examples = [
        Example(f"{name}{i}", "q", f"{name} {i}", ("x",) if i < n_answerable else (), (), "")
        for i in range(len(f1))
    ]
    return Scored(name, examples, np.array(tokens), np.array(f1))


HERE = by_hand("here", (1.0, 0.5, 1.0, 1.0), 2, (100, 128, 256, 257))
THERE = by_hand("there", (0.5, 0.5, 0.5, 0.5), 3, (100, 200, 300, 300))


def less(values: np.ndarray, delta: float) -> float:
    """Return a bound that can be worked out by hand."""
    return float(values.mean()) - delta


def test_strata_are_the_parts_with_their_bounds() -> None:
    """Floors are rounded down to four decimals; a bound above the mean is cut to it."""
    assert strata_of(HERE, less, 0.01234) == (
        Stratum("answerable", 2, 2, 0.75, 0.7376, 2),
        Stratum("unanswerable", 2, 2, 1.0, 0.9876, 2),
        Stratum("to 128 tokens", 2, 2, 0.75, 0.7376, 2),
        Stratum("129 to 256 tokens", 1, 1, 1.0, 0.9876, 1),
        Stratum("over 256 tokens", 1, 1, 1.0, 0.9876, 1),
    )
    assert [part.floor for part in strata_of(HERE, less, -0.1)] == [0.75, 1.0, 0.75, 1.0, 1.0]
    assert [rounded_down(f) for f in (0.74009, 0.74001, -0.3)] == [0.7400, 0.7400, 0.0]


def test_a_check_says_how_a_floor_fares_elsewhere() -> None:
    """All checks share delta; what fails names its shift, what is not there is not checked."""
    floors = {ALL: 0.8, "answerable": 0.6, "129 to 256 tokens": 0.4, "nowhere": 0.9}
    found = list(checks_of(HERE, THERE, floors, less, 0.4))
    shifted = (
        "answerable: F1 0.500 instead of 0.750 (-0.188);"
        " unanswerable: F1 0.500 instead of 1.000 (-0.125)"
    )
    assert found == [
        Check("there", ALL, 4, 4, 0.5, 0.6, 0.8, shifted),
        Check("there", "answerable", 3, 3, 0.5, 0.6, 0.6, ""),
        Check("there", "129 to 256 tokens", 1, 1, 0.5, 0.6, 0.4, ""),
    ]
    assert [check.verdict for check in found] == ["fails", found[1].verdict, "holds"]
    (capped_at_1,) = checks_of(HERE, HERE, {ALL: 0.5}, less, 0.4)
    assert capped_at_1.f1_high == 1.0


def test_the_largest_cause_of_a_shift_comes_first() -> None:
    """Here the mix: of the unanswerable questions, answered well, three in four are gone."""
    before = by_hand("here", (0.0, 1.0, 1.0, 1.0), 1, (9,) * 4)
    after = by_hand("there", (0.0, 0.0, 0.0, 0.8), 3, (9,) * 4)
    assert shift(before, after, ALL) == "75% answerable instead of 25% (-0.500)"
    unknown = by_hand("there", (0.1, 0.1, 0.1, 0.1), 4, (9,) * 4)
    only = by_hand("here", (0.5, 0.7), 0, (9,) * 2)
    assert shift(only, unknown, ALL) == "answerable: F1 0.100 instead of 0.600 (-0.500)"


def test_without_holding_out_every_question_that_counts_makes_floors() -> None:
    """A small set of one's own has none to spare."""
    certified, held = split(scored(200), hold_out=False)
    assert (len(certified.examples), len(held.examples)) == (600, 0)
