"""The ledger of looks: how much of delta each look at a data set has spent. Pure.

When several studies certify on the same questions, the best one may look good by luck. So each look spends
only a part of delta: the first a half, the second a sixth, the third a twelfth of the whole. All floors of
all looks hold jointly at 1 - delta. Certifying the same models again is not a new look.

Source: alpha spending, Lan & DeMets 1983; here by the union bound.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace

from gateway.catalog.schema import Variant
from gateway.catalog.store import Look
from optimizer.data.question_sets import DataError


def claims_of(variants: Sequence[Variant], method: str, delta: float, scope: str) -> str:
    """Return a hash that identifies a look: the models, their decoding, and the certification settings."""
    models = sorted((v.name, v.sha256, asdict(v.decoding)) for v in variants)
    raw = json.dumps([models, method, delta, scope], sort_keys=True)
    return hashlib.sha256(raw.encode()).hexdigest()


def next_look(
    looks: Sequence[Look], data: Collection[str], claims: str, delta: float, study: str, date: str
) -> Look:
    """Return the next look at these data sets, or the earlier look with the same claims.

    `data`: a key for each data set and split. Raises: DataError when delta is used up.
    """
    same = [look for look in looks if look.claims == claims and set(look.data) == set(data)]
    if same:
        return same[0]
    before = [look for look in looks if set(look.data) & set(data)]
    spent = max((_spent(before, key) for key in data), default=0.0)
    if spent >= delta:
        raise DataError(
            f"not certified: {len(before)} looks at these questions have spent {spent:.4g} of delta"
            f" {delta:g}; certify on questions that were not used before"
        )
    share = (delta - spent) / (len(before) + 2)
    return Look(tuple(data), claims, study, date, delta, share)


def by_method(look: Look, method: str) -> Look:
    """Return the look with its floors made by this method, in place of those of an earlier version.

    A version that was chosen by simulation alone replaces the floors of the one before: no result chose
    among them, and floors that are not in force guarantee nothing. So it is no new look.
    """
    return (
        look if look.methods[-1:] == (method,) else replace(look, methods=(*look.methods, method))
    )


def with_look(looks: Sequence[Look], look: Look) -> tuple[Look, ...]:
    """Return the ledger with this look in it, once."""
    known = any(_same(look, other) for other in looks)
    return tuple(look if _same(look, other) else other for other in looks) + (look,) * (not known)


def merged(one: Sequence[Look], other: Sequence[Look]) -> tuple[Look, ...]:
    """Return the looks of both ledgers, so that a rollback forgets none."""
    return (*one, *(look for look in other if not any(_same(look, mine) for mine in one)))


def _same(one: Look, other: Look) -> bool:
    return (one.claims, set(one.data)) == (other.claims, set(other.data))


def _spent(looks: Sequence[Look], key: str) -> float:
    return sum(look.spent for look in looks if key in look.data)
