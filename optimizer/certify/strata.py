"""Strata of a plan's scores (answerable or not, or by label; by length), and how two data sets differ. Pure.

Legend: n questions. The certified value is a mean over clusters (see `clusters`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gateway.catalog.schema import Check, Stratum
from optimizer.certify.bounds import FloorBound, ceiling
from optimizer.data import clusters
from optimizer.data.items import Item

ALL = "all"
MOST_KINDS = 12  # labels; floors of more would have a share of delta too small to say anything
LENGTHS = ("to 128 tokens", "129 to 256 tokens", "over 256 tokens")
LENGTH_EDGES = (128, 256)
EVERY, TITLED = "all clusters", "unseen titled articles"  # scopes of a certificate
HELD_OUT = 5  # one cluster in this many is held out to check the floors
HELD_OUT_FROM = (
    100  # clusters; a check on a fifth of fewer could hardly fail, and costs the floors more
)
HELD_OUT_NAMES = tuple(f"held-out {unit}s" for unit in ("article", "context", "group", "text"))
WORTH_NAMING = 0.25  # a cause is named from this share of the whole difference on


@dataclass(frozen=True, slots=True)
class Scored:
    """Questions of a data set, or of a part of it, with the F1 of one plan on each."""

    name: str
    examples: Sequence[Any]  # Item
    tokens: np.ndarray  # (n,) int, of question and context together
    f1: np.ndarray  # (n,)

    def part(self, keep: np.ndarray, name: str = "") -> Scored:  # keep: (n,) bool
        rows = np.flatnonzero(keep).tolist()
        examples = [self.examples[i] for i in rows]
        return Scored(name or self.name, examples, self.tokens[rows], self.f1[rows])

    @property
    def means(self) -> np.ndarray:
        """Return the mean F1 of each cluster, in an order that does not depend on the values."""
        return clusters.means(self.examples, self.f1)

    @property
    def n_contexts(self) -> int:
        return len({e.context for e in self.examples})

    @property
    def scopes(self) -> dict[str, Scored]:
        """Return all questions and, if only some articles are known, those of known articles."""
        titled = clusters.is_titled(self.examples)
        one = titled.all() or not titled.any()
        return {EVERY: self} | ({} if one else {TITLED: self.part(titled)})

    @property
    def kinds(self) -> np.ndarray:  # (n,) names
        return np.array([e.kind for e in self.examples])

    @property
    def lengths(self) -> np.ndarray:  # (n,) names
        return np.array(LENGTHS)[np.searchsorted(LENGTH_EDGES, self.tokens)]

    @property
    def strata(self) -> dict[str, Scored]:
        """Return the parts that have questions."""
        kinds = self.kinds
        names = sorted(set(kinds.tolist()))
        masks = {name: kinds == name for name in names if len(names) <= MOST_KINDS}
        masks |= {name: self.lengths == name for name in LENGTHS}
        return {name: self.part(mask) for name, mask in masks.items() if mask.any()}


def held_out(examples: Sequence[Item]) -> np.ndarray:  # (n,) bool
    """Return which questions only check floors: a fifth of the articles, or else of the contexts.

    Of fewer than HELD_OUT_FROM none is held out. If any article is known, contexts of unknown articles are never held out: other contexts of the same
    article may have made a floor.
    """
    titled = clusters.is_titled(examples)
    keys = [clusters.cluster_of(e) for e in examples]
    eligible = titled if titled.any() else np.ones(len(keys), dtype=bool)
    among = {key for key, is_eligible in zip(keys, eligible, strict=True) if is_eligible}
    held = {key for key in among if _is_held_out(key)} if len(among) >= HELD_OUT_FROM else set()
    return np.array([key in held for key in keys], dtype=bool)


def _is_held_out(key: str) -> bool:
    # A different hash than the one that splits: a calibrate split has only some values of that one.
    return int(hashlib.sha256(f"held out {key}".encode()).hexdigest(), 16) % HELD_OUT == 0


def makes_floors(examples: Sequence[Item], *, hold_out: bool = True) -> np.ndarray:  # (n,) bool
    """Return which questions make floors: those that count and are not held out."""
    counts = clusters.counted(examples)
    return counts & ~held_out(examples) if hold_out else counts


def split(scored: Scored, *, hold_out: bool = True) -> tuple[Scored, Scored]:
    """Return the questions that make floors, and the held-out ones that check them."""
    made = makes_floors(scored.examples, hold_out=hold_out)
    held = clusters.counted(scored.examples) & ~made
    return scored.part(made), scored.part(held, _held_out_name(scored.examples))


def _held_out_name(examples: Sequence[Item]) -> str:
    titled = bool(clusters.is_titled(examples).any())
    unit = examples[0].units[not titled] if examples else "context"
    return f"held-out {unit}s"


def capped(scored: Scored) -> Scored:
    """Return the questions that count: those on the first few contexts of each article."""
    return scored.part(clusters.counted(scored.examples))


def rounded_down(floor: float) -> float:
    return max(0.0, round(floor - 5e-5, 4))


def stratum_of(name: str, part: Scored, floor: float) -> Stratum:
    """Return the stratum of a part of the certified questions."""
    values = part.means
    return Stratum(
        name=name,
        n_contexts=part.n_contexts,
        n_questions=len(part.examples),
        f1=float(values.mean()),
        floor=min(floor, float(values.mean())),
        n_clusters=len(values),
    )


def scope_shares(scored: Scored, share: float) -> dict[str, float]:
    """Return `share` split over the scopes, inversely to their numbers of clusters.

    A floor from few clusters gains most from a larger share: it falls with share ** (1 / n). The numbers of
    clusters are known before any answer is.
    """
    inverse = {name: 1 / len(part.means) for name, part in scored.scopes.items()}
    return {name: share * each / sum(inverse.values()) for name, each in inverse.items()}


def floors_of(certified: Scored, bound: FloorBound, share: float) -> dict[str, float]:
    """Return each scope's floor; they hold together at 1 - `share`."""
    each = scope_shares(certified, share)
    return {
        name: rounded_down(bound(part.means, each[name])) for name, part in certified.scopes.items()
    }


def floor_of(certified: Scored, bound: FloorBound, share: float) -> float:
    """Return the lowest of the scopes' floors."""
    return min(floors_of(certified, bound, share).values())


def strata_of(certified: Scored, bound: FloorBound, share: float) -> tuple[Stratum, ...]:
    """Return each stratum with its floor; each holds at 1 - `share`, in all its scopes together.

    Routing uses the floors of the kinds, so each of them is the lowest over the scopes.
    """
    return tuple(
        stratum_of(
            name,
            part,
            floor_of(part, bound, share)
            if name not in LENGTHS
            else rounded_down(bound(part.means, share)),
        )
        for name, part in certified.strata.items()
    )


def checks_of(
    certified: Scored, other: Scored, floors: dict[str, float], bound: FloorBound, delta: float
) -> Iterator[Check]:
    """Yield the check of each floor on other data; `floors`: by stratum, and of `all`."""
    here, there = ({ALL: s} | s.strata for s in (certified, capped(other)))
    for name in (n for n in floors if n in there):
        part = there[name]
        values = part.means
        high = min(1.0, ceiling(bound, values, delta / len(floors)))
        check = Check(
            data=other.name,
            stratum=name,
            n_contexts=part.n_contexts,
            n_questions=len(part.examples),
            f1=float(values.mean()),
            f1_high=high,
            floor=floors[name],
        )
        failed = check.verdict == "fails"
        yield replace(check, shift=shift(here[name], part, name)) if failed else check


@dataclass(frozen=True, slots=True)
class _Part:
    """The share of a part in the data, and its mean F1, with equal weights of clusters."""

    share: float
    f1: float


def shift(here: Scored, there: Scored, stratum: str) -> str:
    """Return what lowers the mean F1 of a stratum on other data, the largest effect first.

    The difference is exactly the sum of two effects: the changed shares of the parts (at the scores of
    `here`), and the changed score of each part (at the shares of `there`).
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
    """Return the parts of a stratum: a kind is divided by length, everything else by kind."""
    labels = scored.kinds if stratum in (ALL, *LENGTHS) else scored.lengths
    weight = clusters.weights(scored.examples)
    found = {}
    for name in dict.fromkeys(labels.tolist()):
        of_part = weight[labels == name]
        f1 = float(of_part @ scored.f1[labels == name] / of_part.sum())
        found[str(name)] = _Part(float(of_part.sum()), f1)
    return found
