"""Results and times of a comparison's evaluations: made once, charged to each run that needs them.

A slice has the same F1 in every run, and equal shapes have equal costs; so searches share results. Each
run is charged the time that its evaluations took when they were made, and its sampler's time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optimizer.study.space import Candidate
from optimizer.study.trials import Cost


class EvaluationLedger:
    """A database file of results and charges; a kill at any moment leaves it consistent."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS results"
            " (key TEXT PRIMARY KEY, value TEXT NOT NULL, seconds REAL NOT NULL)"
        )
        database.execute(
            "CREATE TABLE IF NOT EXISTS charges (run TEXT, trial INTEGER, seconds REAL NOT NULL,"
            " PRIMARY KEY (run, trial))"
        )

    def find(self, key: str) -> tuple[Any, float] | None:
        """Return a result and the seconds it took; None: there is no result yet."""
        row = self._database.execute(
            "SELECT value, seconds FROM results WHERE key = ?", (key,)
        ).fetchone()
        return (json.loads(row[0]), float(row[1])) if row else None

    def keep(self, key: str, value: Any, seconds: float) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (key, json.dumps(value), seconds)
        )

    def charge(self, run: str, trial: int, seconds: float) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO charges VALUES (?, ?, ?)", (run, trial, seconds)
        )

    def charges(self, run: str) -> dict[int, float]:
        """Return the seconds that a run was charged, by trial."""
        rows = self._database.execute("SELECT trial, seconds FROM charges WHERE run = ?", (run,))
        return {int(trial): float(seconds) for trial, seconds in rows}


@contextmanager
def opened(path: Path) -> Iterator[EvaluationLedger]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        yield EvaluationLedger(database)


def shape_key(candidate: Candidate) -> str:
    """Return a key that candidates of equal cost share: it names neither their layers nor their training."""
    return repr(replace(candidate, layers=tuple(range(len(candidate.layers))), recipe=()))


@dataclass
class CachedEvaluator:
    """Evaluates candidates through the ledger.

    `costs_of`, `f1_of`: keys of its costs and F1s. `extra_s`: seconds that the last F1 took before it was
    requested, such as those of a training that finished before a kill.
    """

    ledger: EvaluationLedger
    costs_of: str
    f1_of: str
    measure: Callable[[Candidate], Cost]
    score: Callable[[Candidate, int], float]
    extra_s: Callable[[], float] = lambda: 0.0
    clock: Callable[[], float] = time.monotonic
    _last: Candidate | None = None  # candidate whose answers the scorer still has

    def cost(self, candidate: Candidate) -> tuple[Cost, float]:
        """Return latency and size, and the seconds that measuring took."""
        key = f"{self.costs_of}/cost/{shape_key(candidate)}"
        known = self.ledger.find(key)
        if known is None:
            began = self.clock()
            found = self.measure(candidate)
            known = [found.p95_ms, found.size_bytes], self.clock() - began
            self.ledger.keep(key, *known)
        (p95_ms, size_bytes), seconds = known
        return Cost(p95_ms, size_bytes), seconds

    def f1(self, candidate: Candidate, n: int, before: Collection[int]) -> tuple[float, float]:
        """Return F1 on `n` questions, and the seconds it took beyond those on the rungs `before`."""
        key = f"{self.f1_of}/f1/{candidate!r}/"
        known = self.ledger.find(f"{key}{n}")
        if known is None:
            began = self.clock()
            value = self.score(candidate, n)
            seconds = self.clock() - began + self.extra_s()
            if (
                self._last != candidate
            ):  # all questions were answered again: subtract what is charged already
                lower = (self.ledger.find(f"{key}{rung}") for rung in before)
                seconds = max(0.0, seconds - sum(found[1] for found in lower if found))
            self._last = candidate
            known = value, seconds
            self.ledger.keep(f"{key}{n}", *known)
        return known


@dataclass
class Meter:
    """The evaluations of one run, and the time that it is charged for them."""

    run: str
    ledger: EvaluationLedger
    judge: CachedEvaluator
    clock: Callable[[], float] = time.monotonic
    seen: set[str] = field(default_factory=set)  # shapes whose measuring it has paid for
    _since: float = 0.0  # when the last trial was over
    _working_s: float = 0.0  # really spent in evaluations since
    _charged_s: float = 0.0
    _rungs: dict[Candidate, list[int]] = field(default_factory=dict)

    @property
    def spent_s(self) -> float:
        return sum(self.ledger.charges(self.run).values())

    def start(self, known: Collection[Candidate]) -> None:
        """Resume after these candidates: their shapes are charged already, and idle time is not charged."""
        self.seen = {shape_key(candidate) for candidate in known}
        self._since = self.clock()

    def cost(self, candidate: Candidate) -> Cost:
        began = self.clock()
        found, seconds = self.judge.cost(candidate)
        shape = shape_key(candidate)
        self._note(began, 0.0 if shape in self.seen else seconds)
        self.seen.add(shape)
        return found

    def f1(self, candidate: Candidate, n: int) -> float:
        began = self.clock()
        rungs = self._rungs.setdefault(candidate, [])
        found, seconds = self.judge.f1(candidate, n, rungs)
        rungs.append(n)
        self._note(began, seconds)
        return found

    def _note(self, began: float, charged_s: float) -> None:
        self._working_s += self.clock() - began
        self._charged_s += charged_s

    def charge(self, trial: int) -> None:
        """Charge a finished trial: its evaluations, and the sampler's time before it."""
        now = self.clock()
        sampler_s = max(0.0, now - self._since - self._working_s)
        self.ledger.charge(self.run, trial, self._charged_s + sampler_s)
        self._since, self._working_s, self._charged_s = now, 0.0, 0.0
