"""What has been spent of delta on each data set: every look at it costs some. Pure.

Floors of successive studies on the same questions are chosen among: with each study published or shown, the
next one is more likely to look good by luck. So the k-th look at a data set spends 1 / (k + 1) of what the ones
before have left of delta: a half, a sixth, a twelfth ... of the whole. All floors of all looks hold jointly
at 1 - delta. Looking at the same models again is no new look.

Source: alpha spending, Lan & DeMets 1983; here by the union bound.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict

from gateway.catalog.schema import Variant
from gateway.catalog.store import Look
from optimizer.data.question_sets import DataError


def claims_of(variants: Sequence[Variant], method: str, delta: float, scope: str) -> str:
    """Return what tells one look from another: the models, how they decode, and how they are certified."""
    models = sorted((v.name, v.sha256, asdict(v.decoding)) for v in variants)
    raw = json.dumps([models, method, delta, scope], sort_keys=True)
    return hashlib.sha256(raw.encode()).hexdigest()


def next_look(
    looks: Sequence[Look], data: Collection[str], claims: str, delta: float, study: str, date: str
) -> Look:
    """Return the look at these data sets that is now taken, or the one that was taken for the same claims.

    `data`: a key for each data set and split. Raises: DataError where nothing of delta is left.
    """
    same = [look for look in looks if look.claims == claims and set(look.data) == set(data)]
    if same:
        return same[0]
    before = [look for look in looks if set(look.data) & set(data)]
    spent = max((_spent(before, key) for key in data), default=0.0)
    if spent >= delta:
        raise DataError(
            f"not certified: {len(before)} looks at these questions have spent {spent:.4g} of delta"
            f" {delta:g}; certify with questions that nobody has looked at yet"
        )
    share = (delta - spent) / (len(before) + 2)
    return Look(tuple(data), claims, study, date, delta, share)


def with_look(looks: Sequence[Look], look: Look) -> tuple[Look, ...]:
    """Return the ledger with this look in it, once."""
    return tuple(looks) if look in looks else (*looks, look)


def merged(one: Sequence[Look], other: Sequence[Look]) -> tuple[Look, ...]:
    """Return all looks of two ledgers: none is forgotten by going back to a catalog of before."""
    return (*one, *(look for look in other if look not in one))


def _spent(looks: Sequence[Look], key: str) -> float:
    return sum(look.spent for look in looks if key in look.data)
