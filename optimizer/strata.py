"""A plan's scores part by part: answerable or not, short or long; and how two data sets differ. Pure.

Legend: n questions. The certified value is a mean over contexts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gateway.published import Check, Stratum
from optimizer.certify import Bound, ceiling
from optimizer.data import Example
from optimizer.evaluate import means_by_context

ALL = "all"
KINDS = ("answerable", "unanswerable")
LENGTHS = ("to 128 tokens", "129 to 256 tokens", "over 256 tokens")
LENGTH_EDGES = (128, 256)
FRESH = 5  # one context in so many is kept from the floors, to check them
WORTH_NAMING = 0.25  # share of the whole difference from which on a cause is named


@dataclass(frozen=True, slots=True)
class Scored:
    """The questions of a data set, or of a part of it, with what one plan scored on each."""

    name: str
    examples: Sequence[Example]
    tokens: np.ndarray  # (n,) int, of question and context together
    f1: np.ndarray  # (n,)

    def part(self, keep: np.ndarray, name: str = "") -> Scored:  # keep: (n,) bool
        rows = np.flatnonzero(keep).tolist()
        examples = [self.examples[i] for i in rows]
        return Scored(name or self.name, examples, self.tokens[rows], self.f1[rows])

    @property
    def means(self) -> np.ndarray:
        """Return the mean F1 of each context, in an order that does not depend on them."""
        return means_by_context(self.examples, self.f1)

    @property
    def kinds(self) -> np.ndarray:  # (n,) names
        return np.array([KINDS[not e.answerable] for e in self.examples])

    @property
    def lengths(self) -> np.ndarray:  # (n,) names
        return np.array(LENGTHS)[np.searchsorted(LENGTH_EDGES, self.tokens)]

    @property
    def strata(self) -> dict[str, Scored]:
        """Return the parts that hold any question."""
        masks = {name: self.kinds == name for name in KINDS}
        masks |= {name: self.lengths == name for name in LENGTHS}
        return {name: self.part(mask) for name, mask in masks.items() if mask.any()}


def is_fresh(context: str) -> bool:
    """Is this context of the fifth that no floor is made from?"""
    # Not the hash that splits: of that one only three values are left in a calibrate split.
    return int(hashlib.sha256(b"fresh " + context.encode()).hexdigest(), 16) % FRESH == 0


def split(scored: Scored) -> tuple[Scored, Scored]:
    """Return what floors are made from, and the fresh contexts that check them."""
    fresh = np.array([is_fresh(e.context) for e in scored.examples], dtype=bool)
    return scored.part(~fresh), scored.part(fresh, "fresh contexts")


def rounded_down(floor: float) -> float:
    return max(0.0, round(floor - 5e-5, 4))


def strata_of(certified: Scored, bound: Bound, delta: float) -> tuple[Stratum, ...]:
    """Return each stratum with its floor; delta is split over them, so they hold jointly."""
    parts = certified.strata
    return tuple(
        Stratum(
            name=name,
            n_contexts=len(part.means),
            n_questions=len(part.examples),
            f1=float(part.means.mean()),
            floor=rounded_down(bound(part.means, delta / len(parts))),
        )
        for name, part in parts.items()
    )


def checks_of(
    certified: Scored, other: Scored, floors: dict[str, float], bound: Bound, delta: float
) -> Iterator[Check]:
    """Yield what became of each floor on other data; `floors`: of `all` and of every stratum."""
    here, there = ({ALL: s} | s.strata for s in (certified, other))
    for name in (n for n in floors if n in there):
        part = there[name]
        means = part.means
        high = min(1.0, ceiling(bound, means, delta / len(floors)))
        check = Check(
            data=other.name,
            stratum=name,
            n_contexts=len(means),
            n_questions=len(part.examples),
            f1=float(means.mean()),
            f1_high=high,
            floor=floors[name],
        )
        failed = check.verdict == "fails"
        yield replace(check, shift=shift(here[name], part, name)) if failed else check


@dataclass(frozen=True, slots=True)
class _Part:
    """A part's share of the data, and its mean F1, every context weighing the same."""

    share: float
    f1: float


def shift(here: Scored, there: Scored, stratum: str) -> str:
    """Name what makes the mean F1 of a stratum lower there, the largest effect first.

    The difference is exactly the sum of the mix's effect (shares of there, scores of here) and of
    each part's (scores of there less scores of here, shares of there).
    """
    a, b = (_parts(scored, stratum) for scored in (here, there))
    mean = float(here.means.mean())
    before = {name: a.get(name, _Part(0.0, mean)) for name in (*a, *b)}
    after = {name: b.get(name, _Part(0.0, part.f1)) for name, part in before.items()}
    change = {name: after[name].share - before[name].share for name in before}
    most = max(change, key=lambda name: abs(change[name]))
    effects = {
        f"{after[most].share:.0%} {most} instead of {before[most].share:.0%}": sum(
            change[name] * before[name].f1 for name in before
        )
    }
    for name, part in after.items():
        text = f"{name}: F1 {part.f1:.3f} instead of {before[name].f1:.3f}"
        effects[text] = part.share * (part.f1 - before[name].f1)
    least = WORTH_NAMING * sum(effects.values())
    named = sorted((effect, text) for text, effect in effects.items() if effect <= least)
    return "; ".join(f"{text} ({effect:+.3f})" for effect, text in named)


def _parts(scored: Scored, stratum: str) -> dict[str, _Part]:
    """Return the parts of a stratum: by length what is of one kind, all else by kind."""
    labels = scored.lengths if stratum in KINDS else scored.kinds
    count = Counter(e.context for e in scored.examples)
    weight = np.array([1 / count[e.context] for e in scored.examples])
    weight /= weight.sum()
    found = {}
    for name in dict.fromkeys(labels.tolist()):
        of_part = weight[labels == name]
        f1 = float(of_part @ scored.f1[labels == name] / of_part.sum())
        found[str(name)] = _Part(float(of_part.sum()), f1)
    return found
