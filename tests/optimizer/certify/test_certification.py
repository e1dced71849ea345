"""Certificates of small samples, worked out by hand: what each field says, and what each claim spends.

Where every value is 1, Hoeffding-Bentkus' floor is the n-th root of its share; that can be written down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.catalog.schema import Bound, Certificate, Decoding, LossCheck, ScopeLoss
from gateway.catalog.store import sha256_of
from gateway.domain import Span
from gateway.qa.codec import Reading
from optimizer.certify import certification
from optimizer.certify.bounds import betting_floor
from optimizer.certify.certification import Evidence, PlanScores, QuestionSet, Shares, shares
from optimizer.certify.strata import EVERY, TITLED, Scored, rounded_down
from optimizer.data.question_sets import DataError, Example, Split, split_of
from optimizer.data.splits import StudyQuestions
from optimizer.onnx import profile
from optimizer.study import provenance
from optimizer.study.config import CertifyConfig, DataConfig, StudyConfig
from tests.fakes import TOKENIZER, encoder, make_variant

BY_HAND = CertifyConfig(delta=0.3, method="hoeffding-bentkus")
SPENT = 0.12
CONTEXTS, ARTICLES = 4, 2  # of `examples`: clusters of unknown and of known title


def examples(name: str, n_contexts: int = CONTEXTS, n_articles: int = ARTICLES) -> list[Example]:
    """Return one unanswerable question a cluster, and two in the first; articles come last."""
    titles = [""] * n_contexts + [f"{name} {i}" for i in range(n_articles)]
    found = [Example(f"{name}{i}", "q", f"{name} {i}", (), (), t) for i, t in enumerate(titles)]
    return [replace(found[0], id=f"{name} more"), *found]


def scored(name: str, f1: float, asked: Sequence[Example] = ()) -> Scored:
    asked = asked or examples(name)
    return Scored(name, asked, np.full(len(asked), 60), np.full(len(asked), f1))


NOTHING = Scored("held-out articles", [], np.zeros(0, dtype=int), np.zeros(0))


def questions(name: str, asked: Sequence[Example]) -> QuestionSet:
    n = len(asked)
    return QuestionSet(name, asked, np.full(n, 60), np.full(n, 64), np.full(n, 1), f"of {name}")


def evidence(calibrate: QuestionSet, *reports: QuestionSet, hold_out: bool = True) -> Evidence:
    def ask(variant: str, asked: QuestionSet) -> tuple[list[Reading], list[float]]:
        """Answer that there is none with a margin of 1; only `sure` knows it of the last question, too."""
        n = len(asked.examples)
        margins = [1.0] * n if variant == "sure" else [1.0] * (n - 1) + [-1.0]
        return [Reading((Span("wrong", 0, 5, 0.5, 0.0),), margin) for margin in margins], []

    empty = questions("search", [])
    return Evidence(
        empty, calibrate, reports, ask, BY_HAND, "files", "hash", SPENT, hold_out=hold_out
    )


@pytest.mark.parametrize(
    ("counts", "each"),
    [
        (
            (1, 0, 0.12, 4),
            Shares(0.09, 0.0, 0.0, 0.0075),
        ),  # no losses: three quarters for the floor
        ((2, 0, 0.12, 4), Shares(0.03, 0.03, 0.03, 0.00375)),  # one loss
        (
            (3, 2, 0.12, 4),
            Shares(0.03, 0.015, 0.005, 0.0015),
        ),  # two floors of cascades, four losses
        ((1, 1, 0.12, 4), Shares(0.06, 0.0, 0.015, 0.00375)),
        ((1, 0, 0.12, 0), Shares(0.09, 0.0, 0.0, 0.03)),
    ],
)
def test_each_claim_has_its_share_of_delta(
    counts: tuple[int, int, float, int], each: Shares
) -> None:
    """A quarter for the largest, a quarter for the other variants, one for cascades and losses, one for the parts."""
    found = shares(*counts)
    for name in Shares.__slots__:
        assert getattr(found, name) == pytest.approx(getattr(each, name)), name
    assert shares(*counts[:3]) == shares(*counts[:3], 5)  # two kinds and three lengths


def test_a_certificate_says_what_was_found_and_with_which_share() -> None:
    """Of six right values, two of them whole articles: the floor of two articles gets three quarters of the share."""
    asked = evidence(questions("calibrate", examples("calibrate")))
    report = scored("report", 0.0, examples("report", 2, 0))
    outcome = PlanScores(scored("calibrate", 1.0), NOTHING, (report,))
    share, parts = 0.04, 0.01
    found = certification.certificate_of(outcome, asked, ("s", "l"), share, parts)
    of_all, of_articles = rounded_down((share / 4) ** (1 / 6)), rounded_down((0.75 * share) ** 0.5)
    betting = rounded_down(betting_floor(np.ones(2), 0.75 * share))
    assert replace(found, strata=(), checks=(), scopes=()) == Certificate(
        floor=of_articles,
        delta=0.3,
        method="Hoeffding-Bentkus lower bound, version 2 over clusters: an article where its title is known (5"
        " contexts of it at most), a context elsewhere. What this look at the data spends of delta is split over all"
        " plans looked at: a quarter for the largest variant's floor, a quarter for those of the other variants, a"
        " quarter for those of cascades and the losses, a quarter for those of the parts; each over its scopes,"
        " inversely to their numbers of clusters",
        n_contexts=6,
        n_questions=7,
        f1=1.0,
        data="files",
        data_sha256="hash",
        model_sha256=("s", "l"),
        host=profile.here(),
        bounds=(Bound("betting (STaR)", betting), Bound("Hoeffding-Bentkus", of_articles)),
        commit=provenance.commit(),
        n_clusters=6,
        constant_f1=1.0,
        spent=SPENT,
    )
    assert [(s.name, s.n_clusters, s.floor) for s in found.scopes] == [
        (EVERY, 6, of_all),
        (TITLED, 2, of_articles),
    ]
    assert [(s.name, s.floor) for s in found.strata] == [
        ("unanswerable", rounded_down((0.75 * parts) ** 0.5)),
        ("to 128 tokens", rounded_down(parts ** (1 / 6))),
    ]
    high = 1 - (SPENT / 3) ** 0.5  # two contexts, three floors that share what the look spends
    floors = {"all": found.floor} | {s.name: s.floor for s in found.strata}
    assert [c.stratum for c in found.checks] == list(floors)
    for check in found.checks:
        assert (check.data, check.n_contexts, check.n_questions) == ("report", 2, 3)
        assert (check.f1, check.floor) == (0.0, floors[check.stratum])
        assert check.f1_high == pytest.approx(high)


def test_held_out_questions_check_first() -> None:
    """They come from the same data; what is measured elsewhere comes after."""
    certified = scored("calibrate", 1.0)
    held_out, report = (scored(name, 1.0) for name in ("held-out articles", "report"))
    asked = evidence(questions("calibrate", certified.examples))
    outcome = PlanScores(certified, held_out, (report,))
    found = certification.certificate_of(outcome, asked, ("s",), 0.04, 0.01)
    assert [check.data for check in found.checks] == ["held-out articles"] * 3 + ["report"] * 3


def test_the_constant_answer_scores_the_unanswerable_share_over_clusters() -> None:
    """Of three contexts, one is half answerable and one whole: (1/2 + 0 + 1) / 3."""
    of = [("a", ()), ("a", ("x",)), ("b", ("x",)), ("c", ())]
    asked = [Example(str(i), "q", c, gold, (), "") for i, (c, gold) in enumerate(of)]
    assert certification.constant_f1(scored("s", 0.7, asked)) == pytest.approx(0.5)


def test_the_loss_of_a_better_plan_is_worked_out_by_hand() -> None:
    """A plan that is always right beside a variant that never is: differences of 1, in each scope with its share."""
    share = 0.04
    plan = PlanScores(scored("calibrate", 1.0), NOTHING, ())
    best = PlanScores(scored("calibrate", 0.0), NOTHING, ())
    found = certification.paired_of(plan, best, "large", BY_HAND, share)
    of_all, of_articles = 1 - 2 * (share / 4) ** (1 / 6), 1 - 2 * (0.75 * share) ** 0.5
    up = certification.rounded_up
    assert (found.to, found.f1_loss, found.checks) == ("large", -1.0, ())
    assert found.scopes == (ScopeLoss(EVERY, up(of_all)), ScopeLoss(TITLED, up(of_articles)))
    assert found.loss == up(of_articles) > up(of_all)


def test_a_loss_is_checked_on_held_out_questions_and_on_test_data() -> None:
    """Of an article with seven contexts five count there, too; all values say that the plan loses everything."""
    share = 0.04
    long = [Example(str(i), "q", f"c{i}", (), (), "long article") for i in range(7)]
    alike = scored("calibrate", 1.0)
    plan = PlanScores(alike, scored("held-out contexts", 0.0), (scored("report", 0.0, long),))
    best = PlanScores(alike, scored("held-out contexts", 1.0), (scored("report", 1.0, long),))
    found = certification.paired_of(plan, best, "large", BY_HAND, share)
    assert found.f1_loss == 0.0 < found.loss <= 1.0
    held, report = found.checks
    low = 2 * share ** (1 / 6) - 1
    assert held.loss_low == pytest.approx(low)
    assert held == LossCheck("held-out contexts", 6, 7, 1.0, held.loss_low, found.loss)
    assert (report.data, report.n_contexts, report.n_questions) == ("report", 5, 5)
    assert report.loss_low == pytest.approx(2 * share - 1)  # one article is one value


@pytest.mark.parametrize(("loss", "up"), [(0.12341, 0.1235), (0.12339, 0.1234), (1.3, 1.0)])
def test_a_loss_is_rounded_against_us(loss: float, up: float) -> None:
    """To four decimals, and never above 1: nothing loses more."""
    assert certification.rounded_up(loss) == up


def test_a_look_spends_what_the_ledger_gave_or_all_of_delta() -> None:
    """A study that never looked before has it all."""
    asked = evidence(questions("calibrate", examples("calibrate")))
    assert asked.budget == SPENT
    assert replace(asked, spent=None).budget == 0.3
    assert replace(asked, spent=0.0).budget == 0.0


def test_qualities_are_of_the_questions_that_make_floors_and_of_all_test_questions() -> None:
    """Of a long article five contexts make floors, a fifth of a hundred articles none; test data counts whole."""
    long = [Example(f"l{i}", "q", f"l{i}", (), (), "long") for i in range(7)]
    others = [Example(f"{i}", "q", f"c{i}", (), (), f"a{i}") for i in range(150)]
    calibrate, report = questions("calibrate", long + others), questions("report", long)
    variant = make_variant("unsure", 2)
    whole = evidence(calibrate, report, hold_out=False)
    first, last = certification.qualities_of(variant, whole)
    assert (first.data, first.sha256, first.n) == ("calibrate", "of calibrate", 155)
    assert first.f1 == pytest.approx(154 / 155)  # the last question is answered
    assert (last.data, last.sha256, last.n) == ("report", "of report", 7)
    assert last.f1 == pytest.approx(6 / 7)
    assert certification.qualities_of(replace(variant, name="sure"), whole)[0].f1 == 1.0
    bold = replace(variant, decoding=Decoding(null_threshold=2.0))
    assert certification.qualities_of(bold, whole)[0].f1 == 0.0  # as it decodes: it always answers
    held = certification.qualities_of(variant, replace(whole, hold_out=True))[0].n
    assert 100 < held < 145


def test_questions_are_measured_as_the_gateway_cuts_them() -> None:
    """The tokens of a question, the bucket of its windows, their number."""
    long = "word " * 500
    asked = [Example(c, "who", c, (), (), "") for c in ("It is short.", "word " * 80, long)]
    found = certification.questions_of(encoder(), "set", asked, "hash")
    assert (found.name, found.examples, found.sha256) == ("set", asked, "hash")
    for i, example in enumerate(asked):
        windows = encoder().encode(example.as_question())
        assert found.tokens[i] == windows.n_tokens
        assert found.windows[i] == windows.n_windows
    assert found.buckets.tolist() == [64, 96, 384]
    assert found.windows.tolist() == [1, 1, 2]
    assert {a.dtype.kind for a in (found.tokens, found.buckets, found.windows)} == {"i"}


def squad(folder: Path, name: str, titles: Sequence[str], contexts: int = 1) -> None:
    """Write a SQuAD file of one unanswerable question a context."""
    data = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": f"{title} has a paragraph {c}.",
                    "qas": [{"id": f"{name} {title} {c}", "question": "Who?", "answers": []}],
                }
                for c in range(contexts)
            ],
        }
        for title in titles
    ]
    (folder / name).write_text(json.dumps({"data": data}))


def titles_of(split: Split, n: int) -> list[str]:
    """Return names of articles that this split gets."""
    found: list[str] = []
    for i in range(2000):
        example = Example("", "q", "c", (), (), f"Article {i}")
        if split_of(example, by_article=True, certifies=True) is split:
            found.append(example.title)
    return found[:n]


def test_the_evidence_of_a_study_is_gathered_from_its_files(tmp_path: Path) -> None:
    """Certifying files alone make floors; few contexts of an article are asked; test data is named by its file."""
    chosen = [*titles_of(Split.SEARCH, 2), *titles_of(Split.CALIBRATE, 3)]
    squad(tmp_path, "one.json", chosen, contexts=7)
    squad(tmp_path, "two.json", chosen[2:], contexts=1)
    squad(tmp_path, "train.json", chosen)
    squad(tmp_path, "test.v1.json", ["Other"])
    config = StudyConfig(
        name="s",
        largest_name="t",
        data=(
            DataConfig(source="one.json", by_article=True, certifies=True),
            DataConfig(source="train.json", by_article=True),
            DataConfig(source="two.json", by_article=True, certifies=True),
        ),
        report=("test.v1.json",),
        certify=BY_HAND,
    )

    def ask(variant: str, asked: QuestionSet) -> tuple[list[Reading], list[float]]:
        raise AssertionError("nothing is asked yet")

    found = certification.gather(config, StudyQuestions(config, tmp_path), TOKENIZER, ask)
    assert (found.ask, found.how, found.spent, found.hold_out) == (ask, BY_HAND, None, True)
    assert found.data == "one.json (calibrate split), two.json (calibrate split)"
    assert found.data_sha256 == ", ".join(sha256_of(tmp_path / f"{n}.json") for n in ("one", "two"))
    assert (found.search.name, len(found.search.examples)) == ("search", 14)
    assert {e.title for e in found.search.examples} == set(chosen[:2])
    assert found.calibrate.name == "calibrate"
    contexts = {(e.title, e.context) for e in found.calibrate.examples}
    assert len(contexts) == 15  # five of each article
    assert {title for title, _ in contexts} == set(chosen[2:])
    (report,) = found.reports
    assert (report.name, report.sha256) == ("test", sha256_of(tmp_path / "test.v1.json"))
    assert [e.title for e in report.examples] == ["Other"]
    assert (found.search.sha256, found.calibrate.sha256) == ("", "")


def test_a_study_without_certifying_questions_is_refused(tmp_path: Path) -> None:
    """Before hours of work, and with what to do."""
    squad(tmp_path, "one.json", titles_of(Split.SEARCH, 2))
    config = StudyConfig(
        name="s",
        largest_name="t",
        data=(DataConfig(source="one.json", by_article=True, certifies=True),),
        report=(),
    )

    def ask(variant: str, asked: QuestionSet) -> tuple[list[Reading], list[float]]:
        raise AssertionError("nothing is asked yet")

    with pytest.raises(DataError, match=r"^the calibrate split of .* certify$"):
        certification.gather(config, StudyQuestions(config, tmp_path), TOKENIZER, ask)
