"""Do certificates break where they should, and nowhere else? Recorded questions, through the gateway's tests.

A recording holds derived numbers alone, no texts: of each question which context it is from, how each
variant's answer stands to the largest variant's, and how sure each variant is. Streams are drawn from it: a
context, then one of its questions, as certificates count.

Legend: n questions, T requests of a stream, S streams.
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway import catalog as catalogs
from gateway import spans
from gateway.catalog import Catalog
from gateway.domain import Answer
from gateway.embedded import open_session, run
from gateway.errors import BertierError
from gateway.evidence import (
    BLOCK,
    COUNTS,
    Bets,
    Comparison,
    agreement_floors,
    compare,
    confidence_floors,
)
from gateway.published import Agreement, Confidence, Plan
from gateway.spans import SpanEncoder
from optimizer.data import Example
from optimizer.expectations import largest
from optimizer.progress import Progress

RECORDED = Path(__file__).parent / "data" / "drift.json.xz"
FORMAT = 1
UNSHIFTED, SHIFTED = "unshifted", "shifted"
CODES = {Comparison.SAME: "s", Comparison.DIFFERENT: "d", Comparison.ONE_SILENT: "o"}
CODES[Comparison.BOTH_SILENT] = "b"
COMPARED = {code: comparison for comparison, code in CODES.items()}
DECIMALS = 4  # of a confidence


class DriftError(BertierError):
    """A recording that cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Series:
    """What was recorded of one set of questions."""

    contexts: np.ndarray  # (n,) int, from 0
    compared: Mapping[str, np.ndarray]  # by variant: (n,) indices into list(Comparison)
    confidence: Mapping[str, np.ndarray]  # by variant: (n,)

    def draw(self, requests: int, streams: int, seed: int) -> np.ndarray:  # (T, S) int
        """Return which questions are asked: a context at random, then one of its questions."""
        rng = np.random.default_rng(seed)
        order = np.argsort(self.contexts, kind="stable")
        counts = np.bincount(self.contexts)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        context = rng.integers(0, len(counts), (requests, streams))
        within = (rng.random((requests, streams)) * counts[context]).astype(int)
        return np.asarray(order[first[context] + within])

    def of_plan(self, plan: Plan, reference: str) -> np.ndarray:  # (n,)
        """Return how the plan's answers compare; where the reference gave them, as a silence: no evidence."""
        silent = list(Comparison).index(Comparison.BOTH_SILENT)
        found = self.compared[plan.variants[0]].copy()
        doubted = np.ones(len(found), dtype=bool)
        for i, threshold in enumerate(plan.thresholds):
            doubted &= self.confidence[plan.variants[i]] < threshold
            further = plan.variants[i + 1]
            found[doubted] = silent if further == reference else self.compared[further][doubted]
        return found


def first_alarms(
    expected: Agreement, compared: np.ndarray, delta: float, tolerance: float
) -> np.ndarray:  # compared: (T, S) -> (S,)
    """Return at which request of each stream the alarm rises; -1: never."""
    counts = np.array([COUNTS[each] for each in Comparison])  # (4, 2, F)
    bets = Bets(agreement_floors(expected, tolerance), (compared.shape[1],))
    return _rises(bets, np.moveaxis(counts[compared], 2, 0), delta)


def first_shifts(expected: Confidence, confidence: np.ndarray, delta: float) -> np.ndarray:
    """Return the same of the check of confidence; confidence: (T, S) -> (S,)."""
    under = confidence[..., None] <= np.array(expected.edges)  # (T, S, K)
    blocks = under[: len(under) // BLOCK * BLOCK].reshape(-1, BLOCK, *under.shape[1:]).sum(axis=1)
    hits = np.concatenate([blocks, BLOCK - blocks], axis=-1)  # (T / BLOCK, S, F)
    bets = Bets(confidence_floors(expected), (confidence.shape[1],))
    found = _rises(bets, np.stack([hits, BLOCK - hits]), delta)
    return np.where(found < 0, -1, (found + 1) * BLOCK - 1)


def _rises(bets: Bets, counts: np.ndarray, delta: float) -> np.ndarray:  # (2, T, S, F) -> (S,)
    found = np.full(counts.shape[2], -1)
    for t in range(counts.shape[1]):
        bets.add(counts[0, t], counts[1, t])
        found[(found < 0) & (bets.capital >= 1 / delta)] = t
    return found


def record(repository: Path, sets: Mapping[str, Sequence[Example]], path: Path = RECORDED) -> None:
    """Ask every variant everything, and keep what is derived from the answers."""
    catalog = catalogs.read(repository)
    encoder = SpanEncoder.from_file(repository / catalogs.TOKENIZER)
    answers = {
        name: {
            v.name: _ask(repository, catalog, v.name, examples, encoder) for v in catalog.variants
        }
        for name, examples in sets.items()
    }
    write(path, catalog, sets, answers)


def write(
    path: Path,
    catalog: Catalog,
    sets: Mapping[str, Sequence[Example]],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],  # by set and variant
) -> None:
    """Write a recording by one rename."""
    reference = largest(catalog.variants).name
    kept = {
        "format": FORMAT,
        "reference": reference,
        "sha256": {v.name: v.sha256 for v in catalog.variants},
        "sets": {name: _derived(sets[name], found, reference) for name, found in answers.items()},
    }
    part = path.with_suffix(".part")
    with lzma.open(part, "wt") as file:
        json.dump(kept, file)
    os.replace(part, path)


def read(path: Path, catalog: Catalog) -> tuple[dict[str, Series], str]:
    """Return the recorded sets, and which variant the others were compared with. Raises: DriftError."""
    try:
        with lzma.open(path, "rt") as file:
            kept: dict[str, Any] = json.load(file)
    except (OSError, EOFError, lzma.LZMAError, ValueError) as exc:
        raise DriftError(f"{path}: not readable ({exc}); record it again with --record") from exc
    if kept.get("format") != FORMAT or kept["sha256"] != {
        v.name: v.sha256 for v in catalog.variants
    }:
        raise DriftError(f"{path}: not of the variants of this repository; give --record")
    return {name: _series(found) for name, found in kept["sets"].items()}, kept["reference"]


def _derived(
    examples: Sequence[Example], answers: Mapping[str, Sequence[Answer]], reference: str
) -> dict[str, Any]:
    contexts: dict[str, int] = {}
    return {
        "contexts": [contexts.setdefault(e.context, len(contexts)) for e in examples],
        "compared": {
            name: "".join(
                CODES[compare(ours.text, theirs.text)]
                for ours, theirs in zip(found, answers[reference], strict=True)
            )
            for name, found in answers.items()
        },
        "confidence": {
            name: [round(a.score * 10**DECIMALS) for a in found] for name, found in answers.items()
        },
    }


def _series(kept: Mapping[str, Any]) -> Series:
    index = {code: list(Comparison).index(each) for code, each in COMPARED.items()}
    return Series(
        np.array(kept["contexts"]),
        {name: np.array([index[c] for c in found]) for name, found in kept["compared"].items()},
        {name: np.array(found) / 10**DECIMALS for name, found in kept["confidence"].items()},
    )


def _ask(
    repository: Path,
    catalog: Catalog,
    name: str,
    examples: Sequence[Example],
    encoder: SpanEncoder,
) -> list[Answer]:
    variant = catalog.variant(name)
    session = open_session(catalogs.model_path(repository, variant), precision=variant.precision)
    progress, found = Progress(f"record {name}", len(examples)), []
    for example in examples:
        question = example.as_question()
        windows = encoder.encode(question)
        found.append(spans.decode(windows, run(session, windows), question, variant.decoding))
        progress.step()
    return found
