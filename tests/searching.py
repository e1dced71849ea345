"""A search on made-up objectives, in this process or in one of its own that can be killed.

`python -m tests.searching FOLDER TRIALS [URL]` is one worker. It appends what it judges to
`FOLDER/judged.txt`. While there is a file `FOLDER/hang` the first candidate after the seeds is never
finished: the worker that has it writes its pid to `FOLDER/hanging` and waits to be killed.

`... FOLDER TRIALS URL queued` is one that asks cost workers, `... FOLDER costs URL` a cost worker, which
hangs likewise in the first measurement.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.search import cost_queue
from optimizer.search.ask_tell import Evaluators, Search
from optimizer.search.candidates import seeds
from optimizer.search.cost_queue import CostQueue
from optimizer.search.storage import opened
from optimizer.study.config import Sampler, SearchConfig
from optimizer.study.space import Candidate, Space
from optimizer.study.trials import Cost, Point
from optimizer.study.workers import Pulse

SPACE = Space(
    layers="any",
    heads=(2, 4, 8, 12),
    ffn=(128, 256, 512, 1024, 1536),
    embedding_bits=(4, 8),
).within(6)
RUNGS = (40, 150)
PULSE = Pulse(every_s=0.2, grace_s=2.0)
STUDY = "made-up"


def cost(candidate: Candidate) -> Cost:
    """Return what more layers and widths cost: 1 to 100 ms, 3 to 25 MB."""
    weights = len(candidate.layers) * (candidate.heads * 128 + candidate.ffn * 2)
    return Cost(1 + weights / 280, 1_500_000 * candidate.embedding_bits + weights * 384)


def f1(candidate: Candidate, n: int) -> float:
    """Return what deeper and wider ones are worth; a few questions flatter."""
    depth = sum(0.5**i for i, _ in enumerate(candidate.layers)) / 2 + 0.02 * max(candidate.layers)
    width = (candidate.heads / 12 + candidate.ffn / 1536) / 2
    return round(0.3 + 0.25 * depth + 0.2 * math.sqrt(width) + 1 / n, 4)


@dataclass
class Judge:
    """Remembers what it was asked."""

    priced: list[Candidate] = field(default_factory=list)
    scored: list[tuple[Candidate, int]] = field(default_factory=list)

    def cost(self, candidate: Candidate) -> Cost:
        self.priced.append(candidate)
        return cost(candidate)

    def f1(self, candidate: Candidate, n: int) -> float:
        self.scored.append((candidate, n))
        return f1(candidate, n)

    @property
    def evaluators(self) -> Evaluators:
        return Evaluators(self.cost, self.f1)


def search(
    folder: Path,
    how: SearchConfig,
    evaluators: Evaluators,
    *,
    url: str | None = None,
    space: Space = SPACE,
    seed: int = 5,
    pulse: Pulse = PULSE,
) -> list[Point]:
    """Be one worker from start to end."""
    with opened(url, folder, STUDY) as study:
        shared = url is not None
        worker = Search(study, space, how, RUNGS, evaluators, seed=seed, shared=shared, pulse=pulse)
        return worker.run()


def _asked_cost(queue: CostQueue, candidate: Candidate) -> Cost:
    found = queue.ask(candidate.label, asdict(candidate))
    return Cost(found["p95_ms"], found["size_bytes"])


def _measure_costs(folder: Path, url: str) -> None:
    def measure(wanted: dict[str, Any]) -> dict[str, Any]:
        if (folder / "hang").exists():
            _hang(folder)
        return asdict(cost(Candidate(**wanted)))

    with cost_queue.opened(url, STUDY, PULSE) as queue:
        queue.join("a host")
        while True:
            if not queue.answer_next(measure):
                time.sleep(0.02)


def _work_queued(folder: Path, trials: int, url: str) -> None:
    with cost_queue.opened(url, STUDY, PULSE) as queue:
        _work(folder, trials, url, partial(_asked_cost, queue))


def _work(
    folder: Path, trials: int, url: str | None, price: Callable[[Candidate], Cost] = cost
) -> None:
    first = set(seeds(SPACE).values())

    def slow_f1(candidate: Candidate, n: int) -> float:
        if candidate not in first and (folder / "hang").exists():
            _hang(folder)
        time.sleep(0.02)
        with (folder / "judged.txt").open("a") as file:
            file.write(f"{candidate.label} on {n}\n")
        return f1(candidate, n)

    how = SearchConfig(sampler=Sampler.RANDOM, trials=trials, promote=0.1)
    search(folder, how, Evaluators(price, slow_f1), url=url)


def _hang(folder: Path) -> None:
    try:
        (folder / "hang").unlink()  # only one worker does
    except FileNotFoundError:
        return
    part = folder / "hanging.part"
    part.write_text(str(os.getpid()))
    part.rename(folder / "hanging")
    time.sleep(3600)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [_folder, "costs", _url]:
            _measure_costs(Path(_folder), _url)
        case [_folder, _trials, _url, "queued"]:
            _work_queued(Path(_folder), int(_trials), _url)
        case [_folder, _trials, *_urls]:
            _work(Path(_folder), int(_trials), _urls[0] if _urls else None)
