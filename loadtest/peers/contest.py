"""The contest: who keeps p99 within a bound at which rate, and how fast is everyone at the same rate.

Everybody is measured in turns, a short block each, so that a host that changes changes for all. Every
block is kept as a line; a contest that was stopped goes on after the last one.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from gateway.domain import Slo, SloPolicy
from gateway.errors import BertierError
from gateway.slo import DEADLINE_FACTOR
from loadtest.drive import open_loop, schedule
from loadtest.drive.load_clients import LoadClient
from loadtest.drive.open_loop import Run
from loadtest.drive.schedule import Request
from loadtest.lab.mixes import Kind
from loadtest.peers.rates import RateSearch
from optimizer.data.question_sets import Example

BLOCKS = "blocks.jsonl"
WARM_UP = 20
FIRST_RATE = 15.0
SEARCH, EQUAL = "search", "equal"
EQUAL_SEED = 1_000  # and on; searches never come that far


class ContestError(BertierError):
    """A folder that holds another contest; the message says which."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for all."""

    bound_ms: float
    seconds: float
    equal_rates: tuple[float, ...]
    rounds: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """One measurement of one target at one rate; latencies from when a request was due.

    A request without an answer counts as later than any: `p99_ms` is then None.
    """

    target: str
    phase: str
    rate: float
    n: int
    p50_ms: float | None
    p99_ms: float | None
    answered: float
    f1: float | None
    lag_p99_ms: float  # of the client
    failure: str = ""  # what was said most often of what was not answered

    def held(self, bound_ms: float) -> bool:
        return self.p99_ms is not None and self.p99_ms <= bound_ms


Measure = Callable[[str, str, float, int], Block]  # target, phase, rate, seed -> block


class Ledger:
    """The blocks so far, on disk. Raises: ContestError."""

    def __init__(self, folder: Path, terms: Terms) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self.blocks = folder / BLOCKS, list[Block]()
        head = json.dumps(asdict(terms), sort_keys=True)
        if not self._path.exists():
            self._append(head)
            return
        first, *lines = self._path.read_text().splitlines() or [""]
        if first != head:
            raise ContestError(
                f"{self._path}: of a contest on other terms; give another --folder, or delete it"
            )
        for line in lines:
            try:
                self.blocks.append(Block(**json.loads(line)))
            except ValueError:
                break  # the last line of a run that was killed while it wrote
        self._rewrite(head)

    def add(self, block: Block) -> None:
        self.blocks.append(block)
        self._append(json.dumps(asdict(block)))

    def of(self, target: str, phase: str) -> list[Block]:
        return [b for b in self.blocks if (b.target, b.phase) == (target, phase)]

    def _append(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self, head: str) -> None:
        part = self._path.with_suffix(".part")
        part.write_text("\n".join([head, *(json.dumps(asdict(b)) for b in self.blocks)]) + "\n")
        os.replace(part, self._path)


def searches(terms: Terms, ledger: Ledger) -> dict[str, RateSearch]:
    """Return everyone's search as far as it has come."""
    found = {name: RateSearch(FIRST_RATE) for name in terms.names}
    for block in ledger.blocks:
        if block.phase == SEARCH:
            found[block.target].note(block.rate, held=block.held(terms.bound_ms))
    return found


def play(terms: Terms, ledger: Ledger, measure: Measure, say: Callable[[str], None]) -> None:
    """Measure whatever is missing, everybody in turns."""
    found = searches(terms, ledger)
    while open_ := {n: r for n, s in found.items() if (r := s.next_rate()) is not None}:
        # Whoever was measured least is next: in turns, also after a kill in the middle of a round.
        name = min(open_, key=lambda n: len(ledger.of(n, SEARCH)))
        rate, seed = open_[name], len(ledger.of(name, SEARCH)) + 1
        block = measure(name, SEARCH, rate, seed)
        ledger.add(block)
        found[name].note(rate, held=block.held(terms.bound_ms))
        text = f"{rate:g}/s, p99 {_in_words(block.p99_ms)}, {block.answered:.0%} answered"
        say(f"{name}: {text}{block.failure and f' ({block.failure})'}")
    for rate, number, name in _equal(terms, ledger):
        block = measure(name, EQUAL, rate, EQUAL_SEED + number)
        ledger.add(block)
        say(f"{name}: {rate:g}/s, p50 {_in_words(block.p50_ms)}, p99 {_in_words(block.p99_ms)}")


def _in_words(ms: float | None) -> str:
    return "beyond all" if ms is None else f"{ms:.1f} ms"


def _equal(terms: Terms, ledger: Ledger) -> Iterator[tuple[float, int, str]]:
    for number in range(terms.rounds):
        for rate in terms.equal_rates:
            for name in terms.names:
                done = [b for b in ledger.of(name, EQUAL) if b.rate == rate]
                if len(done) <= number:
                    yield rate, number, name


@dataclass(frozen=True, slots=True)
class Row:
    """One target's result; None: not measured, or no answer to everything."""

    target: str
    rate: float  # the highest that held; 0: none did
    f1_at_rate: float | None
    equal: dict[str, list[float | None]]  # by rate: median of the rounds' p50 and p99, mean F1


def rows(terms: Terms, ledger: Ledger) -> list[Row]:
    """Return the table, the highest rate first."""
    found = []
    for name, search in searches(terms, ledger).items():
        at_best = [b.f1 for b in ledger.of(name, SEARCH) if b.rate == search.best]
        equal = {}
        for rate in terms.equal_rates:
            blocks = [b for b in ledger.of(name, EQUAL) if b.rate == rate]
            equal[f"{rate:g}"] = [
                _middle([getattr(b, k) for b in blocks]) for k in ("p50_ms", "p99_ms", "f1")
            ]
        found.append(Row(name, search.best, _middle(at_best), equal))
    return sorted(found, key=lambda r: -r.rate)


def _middle(values: Sequence[float | None]) -> float | None:
    """Return the median, in which nothing is more than anything."""
    if not values:
        return None
    median = float(np.median([np.inf if v is None else v for v in values]))
    return median if isfinite(median) else None


def block_of(target: str, phase: str, rate: float, run: Run) -> Block:
    """Return what a run showed; quantiles are requests, none between an answer and none."""
    latencies = np.sort([r.latency_ms for r in run.results])
    p50, p99 = (float(np.quantile(latencies, q, method="higher")) for q in (0.5, 0.99))
    answered = [r for r in run.results if r.answered]
    f1 = float(np.mean([r.f1 for r in answered])) if answered else None
    share = len(answered) / len(run.results)
    said = Counter(r.reply.detail for r in run.results if not r.answered).most_common(1)
    return Block(
        target=target,
        phase=phase,
        rate=rate,
        n=len(run.results),
        p50_ms=_known(p50),
        p99_ms=_known(p99),
        answered=share,
        f1=f1,
        lag_p99_ms=round(run.client.lag_p99_ms, 3),
        failure=said[0][0] if said else "",
    )


def _known(ms: float) -> float | None:
    return round(ms, 3) if isfinite(ms) else None


def requests(
    examples: Sequence[Example], rate: float, terms: Terms, floor: float, seed: int
) -> list[Request]:
    """Return the requests of one block; only the floor differs between targets."""
    target = Slo(
        terms.bound_ms,
        floor,
        SloPolicy.PREFER_LATENCY,
        DEADLINE_FACTOR * terms.bound_ms,
        "contest",
    )
    return schedule.make("poisson", rate, terms.seconds, (Kind(1.0, target),), examples, seed)


async def ask(load_client: LoadClient, planned: Sequence[Request]) -> Run:
    """Return a run after a few questions that do not count. Raises: TargetLost."""
    for request in planned[:WARM_UP]:  # one by one: a burst would leave a queue to the block
        await load_client.ask(request)
    return await open_loop.play(planned, load_client)


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in found]
