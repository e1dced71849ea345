"""Every look at certifying questions costs some of delta, and all looks together no more than delta."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import store
from gateway.catalog.store import Look
from optimizer.certify import ledger
from optimizer.data.question_sets import DataError
from tests.fakes import make_variant, small_and_large

DATE = "2026-01-01T00:00:00+00:00"


def looks(n: int, delta: float = 0.1) -> tuple[Look, ...]:
    """Return the ledger of so many studies on the same questions."""
    found: tuple[Look, ...] = ()
    for i in range(n):
        look = ledger.next_look(found, ["data"], f"claims {i}", delta, "study", DATE)
        found = ledger.with_look(found, look)
    return found


def test_successive_looks_spend_a_half_a_sixth_a_twelfth() -> None:
    """The first study gets most, and a hundred still fit."""
    spent = [look.spent for look in looks(100)]
    assert spent[:3] == pytest.approx([0.1 / 2, 0.1 / 6, 0.1 / 12])
    assert 0.098 < sum(spent) < 0.1


def test_looking_at_the_same_models_again_is_no_new_look() -> None:
    """`certify` and `publish` say the same floors; a killed command goes on."""
    once = looks(3)
    again = ledger.next_look(once, ["data"], "claims 1", 0.1, "study", DATE)
    assert again == once[1]
    assert ledger.with_look(once, again) == once


def test_a_new_version_of_the_method_replaces_floors_and_is_no_new_look() -> None:
    """Chosen by simulation, not by its floors; the ledger keeps that there was another."""
    once = looks(3)
    twice = ledger.with_look(once, ledger.by_method(once[1], "version 2"))
    assert [look.spent for look in twice] == [look.spent for look in once]
    assert twice[1].methods == ("version 2",)
    assert ledger.by_method(twice[1], "version 2") == twice[1]
    assert ledger.merged(twice, once) == twice  # a rollback, too, knows both as one


def test_other_questions_have_a_ledger_of_their_own() -> None:
    """Nothing was chosen by them."""
    other = ledger.next_look(looks(5), ["other"], "claims", 0.1, "study", DATE)
    assert other.spent == pytest.approx(0.05)


def test_two_data_sets_are_as_spent_as_the_one_looked_at_more() -> None:
    """A floor from both is known to be wrong where one of them misled."""
    both = ledger.next_look(looks(3), ["data", "other"], "claims", 0.1, "study", DATE)
    assert both.spent == pytest.approx(0.1 / 20)


def test_a_smaller_delta_than_was_spent_is_refused_without_advice_to_raise_it() -> None:
    """More confidence cannot be had after the fact, and raising delta after a look is choosing by results."""
    with pytest.raises(
        DataError, match=r"have spent 0\.075 of delta 0\.05.*were not used before"
    ) as exc:
        ledger.next_look(looks(3), ["data"], "claims", 0.05, "study", DATE)
    assert "raise" not in str(exc.value)


def test_claims_differ_by_model_decoding_and_method() -> None:
    """Each of them is something to choose among."""
    variant = make_variant("small", 5)
    other = replace(variant, decoding=replace(variant.decoding, null_threshold=1.0))
    claims = [
        ledger.claims_of([variant], "betting", 0.1, "data"),
        ledger.claims_of([other], "betting", 0.1, "data"),
        ledger.claims_of([variant], "hoeffding-bentkus", 0.1, "data"),
        ledger.claims_of([make_variant("large", 5)], "betting", 0.1, "data"),
        ledger.claims_of([replace(variant, sha256="other")], "betting", 0.1, "data"),
        ledger.claims_of([variant], "betting", 0.2, "data"),
        ledger.claims_of([variant], "betting", 0.1, "other data"),
    ]
    assert len(set(claims)) == 7


def test_the_order_of_models_and_data_makes_no_new_look() -> None:
    """A look is what was looked at; files and variants may be named in any order."""
    one, two = make_variant("small", 5), make_variant("large", 5)
    names = [ledger.claims_of(each, "betting", 0.1, "data") for each in ([one, two], [two, one])]
    assert names[0] == names[1]
    look = ledger.next_look((), ["a", "b"], "claims", 0.1, "study", DATE)
    assert look == Look(("a", "b"), "claims", "study", DATE, 0.1, 0.05)
    swapped = replace(look, data=("b", "a"))
    assert ledger.next_look([look], ["b", "a"], "claims", 0.1, "other study", "later") == look
    assert ledger.with_look([look], swapped) == (swapped,)
    assert ledger.merged([look], [swapped]) == (look,)
    others = ledger.next_look([look], ["a"], "claims", 0.1, "study", DATE)
    assert ledger.merged([look], [others]) == (look, others)
    assert others.spent == pytest.approx(0.05 / 3)  # on other data the same claims are a new look


def test_a_delta_that_is_spent_to_the_last_is_refused() -> None:
    """A look with nothing to spend would certify nothing."""
    whole = Look(("data",), "claims 0", "study", DATE, 0.1, 0.1)
    with pytest.raises(DataError, match=r"^not certified: 1 looks at these questions .* before$"):
        ledger.next_look([whole], ["data"], "claims", 0.1, "study", DATE)
    assert ledger.next_look([whole], ["data"], "claims 0", 0.1, "study", DATE) == whole


def test_the_ledger_is_kept_in_the_catalog_without_a_publication(tmp_path: Path) -> None:
    """A look that published nothing has looked all the same, and there is nothing to roll back."""
    store.write(tmp_path, small_and_large())
    store.note_looks(tmp_path, looks(2))
    assert store.read(tmp_path) == replace(small_and_large(), looks=looks(2))
    assert not (tmp_path / store.PREVIOUS).exists()
