"""The cost gate: latency and size of a candidate from its shape alone, before anything is trained.

Random weights take the same time and room as trained ones. Equal shapes are measured once; what was
measured stays in a folder, by shape and host. A search on another machine than the one that will serve
takes what was measured there, or asks cost workers there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import onnx
from pydantic import ConfigDict, TypeAdapter, ValidationError

from gateway.catalog.schema import Cell, Host, Precision
from gateway.errors import BertierError
from optimizer.models.weights import GraphShape, random_weights, sharing
from optimizer.onnx import graph, profile
from optimizer.search.cost_queue import LOOK_EVERY_S, CostQueue
from optimizer.search.storage import SearchError
from optimizer.study import stages, store, workers
from optimizer.study.config import SearchConfig
from optimizer.study.space import ANY, KNOBS, Candidate, Space, spaced
from optimizer.study.trials import Cost

RUNS = 20  # timed runs of a round
QUIET = 1.15  # largest ratio of a round's p95 to the lowest median; above it the host was busy
PATIENCE_S: float = SearchConfig.model_fields["patience_s"].default


_HOST = TypeAdapter(Host)


class NotMeasured(BertierError):
    """A latency that was to be measured on another host."""


def shapes(space: Space) -> list[Candidate]:
    """Return one candidate of every cost in a space: it counts how many layers, and which are shared."""
    depths = range(min(space.min_layers, space.n_layers), space.n_layers + 1)
    if space.layers == ANY:
        layers = [spaced(n, space.n_layers) for n in depths]
    else:
        alike = {(len(found), sharing(found)): tuple(found) for found in space.layers}
        layers = list(alike.values())
    values = [getattr(space, name) for name in KNOBS]
    found = (
        Candidate(part, **dict(zip(KNOBS, knobs, strict=True)))
        for part in layers
        for knobs in product(*values)
    )
    return list(dict.fromkeys(found))


def graph_shape(teacher: GraphShape, candidate: Candidate) -> GraphShape:
    """Return the graph shape of a slice of the teacher; it depends on how many layers are which."""
    n = len(candidate.layers)
    return replace(
        teacher,
        hidden=candidate.hidden or teacher.hidden,
        heads=(candidate.heads,) * n,
        ffn=(candidate.ffn,) * n,
        embedding_bits=candidate.embedding_bits,
        rank=candidate.rank,
        drops=candidate.drops,
        shared=sharing(candidate.layers),
    )


def kind_of(host: Host) -> str:
    """Return a key of processor and engine."""
    return f"{host.cpu} ({host.flags}), {host.engine}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shape whose cost is to be measured, and how."""

    # It holds for the shape, too: what is unknown is refused, not left out of the graph.
    __pydantic_config__ = ConfigDict(extra="forbid")

    shape: GraphShape
    precision: Precision
    tokens: int  # length bucket
    patience_s: float  # wait this long for a quiet round

    def measured(self) -> dict[str, Any]:
        """Measure on this host; return what the file of a measurement has.

        Raises: SearchError when the model finds no room on the disk.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                return self._measured(Path(folder) / "model.onnx")
        except OSError as exc:
            raise SearchError(
                f"{tempfile.gettempdir()}: a model to measure cannot be written ({exc}); make room, then run"
                " the same command again: what was measured is kept"
            ) from exc

    def _measured(self, path: Path) -> dict[str, Any]:
        shape, precision = self.shape, self.precision
        onnx.save(graph.build(random_weights(shape), shape, precision), path)
        return {
            "p95_ms": self._p95_ms(path),
            "size_bytes": path.stat().st_size,
            "tokens": self.tokens,
            "precision": precision,
            "shape": asdict(shape),
            "host": asdict(profile.here()),
        }

    def _p95_ms(self, path: Path) -> float:
        """Return the p95 of the quietest round: other load can only lengthen a round."""
        cells: list[Cell] = []
        over_s = time.monotonic() + self.patience_s
        while not _quiet(cells) and (not cells or time.monotonic() < over_s):
            found = profile.profile(path, RUNS, (self.tokens,), self.precision)
            cells.append(found.cell(self.tokens))
        return min(cell.p95_ms for cell in cells)


@dataclass(frozen=True)
class CostGate:
    """Measures the costs of candidates of one teacher on this host, or has them measured."""

    teacher: GraphShape
    tokens: int  # length bucket at which latency is measured
    folder: Path  # of cached measurements
    lock: Path = workers.HOST_LOCK
    elsewhere: bool = False  # take what another host measured into the folder; measure nothing
    queue: CostQueue | None = None  # of cost workers, which measure what is not in the folder
    patience_s: float = PATIENCE_S  # wait this long for a quiet round

    def cost(self, candidate: Candidate) -> Cost:
        """Return p95 latency on one core, without load, and the size of the file.

        Raises: NotMeasured when it was to be measured elsewhere, and was not.
        """
        shape = graph_shape(self.teacher, candidate)
        wanted = Wanted(shape, candidate.precision, self.tokens, self.patience_s)
        stored = self.folder / f"{self._key(shape, candidate.precision)}.json"
        if not stored.exists() and self.elsewhere:
            raise NotMeasured(
                f"{self.folder}: no latency of {candidate.label} on {self.host}; run 'bertier-optimize"
                " costs' with this study file there, and copy the run folder"
            )
        if not stored.exists() and self.queue:
            _keep(stored, self.queue.ask(stored.stem, WANTED.dump_python(wanted, mode="json")))
        if not stored.exists():
            with workers.measuring(self.lock):
                if not stored.exists():  # another worker may have measured it meanwhile
                    _keep(stored, wanted.measured())
        found = json.loads(stored.read_text())
        return Cost(found["p95_ms"], found["size_bytes"])

    @property
    def host(self) -> str:
        """Return a key of processor and engine: only latencies with the same key are comparable.

        With a queue that of its cost workers: waits for the first one.
        Raises: NotMeasured when another host's are wanted, and there are none or several hosts'.
        """
        if self.queue:
            return self.queue.host
        return kind_of(self._their_host if self.elsewhere else profile.here())

    @cached_property
    def _their_host(self) -> Host:
        """The host whose measurements are in the folder, or in the store."""
        if kept := store.of(self.folder):
            kept.fetch_missing(self.folder)
        found = {
            json.dumps(json.loads(path.read_text())["host"], sort_keys=True)
            for path in self.folder.glob("*.json")
        }
        if len(found) != 1:
            raise NotMeasured(
                f"{self.folder}: has latencies of {len(found)} hosts, not of one; run 'bertier-optimize"
                " costs' on the host that will serve, and copy the run folder"
            )
        return _HOST.validate_json(found.pop())

    def _key(self, shape: GraphShape, precision: Precision) -> str:
        known = asdict(shape)
        if not shape.shared:  # what was measured before layers could be shared stays valid
            del known["shared"]
        if not shape.labels:  # likewise, before there were classifiers
            del known["labels"]
        if len(shape.drops) < 2:  # likewise, before tokens could be dropped several times
            after, keep = shape.drops[0] if shape.drops else (0, 1.0)
            known |= {"keep": keep, "drop_after": after}
            del known["drops"]
        same = [known, precision, self.tokens, self.host]
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def _keep(stored: Path, found: dict[str, Any]) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    stages.write_json(stored, found)
    if kept := store.of(stored):
        kept.keep([stored])


WANTED = TypeAdapter(Wanted)


def read(request: dict[str, Any]) -> Wanted:
    """Return what a search asks for. Raises: SearchError when it is of another version."""
    try:
        return WANTED.validate_python(request)
    except ValidationError as exc:
        raise SearchError(
            f"the search that asks and this cost worker are of different versions; run the same version of bertier for both ({exc})"
        ) from exc


def serve(queue: CostQueue, lock: Path = workers.HOST_LOCK) -> None:
    """Be a cost worker: measure what is asked for, one shape after the other, until stopped.

    Raises: SearchError.
    """

    def measure(request: dict[str, Any]) -> dict[str, Any]:
        wanted = read(request)
        with workers.measuring(lock):
            return wanted.measured()

    queue.join(kind_of(profile.here()))
    while True:
        if not queue.answer_next(measure):
            time.sleep(LOOK_EVERY_S)


def seconds_of(cell: Cell) -> float:
    """Return what measuring a shape takes, by one round of it: a busy host is given up after PATIENCE_S."""
    round_s = (RUNS + profile.WARM_UP) * cell.p50_ms / 1e3
    return round_s if _quiet([cell]) else max(round_s, PATIENCE_S)


def _quiet(cells: Sequence[Cell]) -> bool:
    if not cells:
        return False
    return min(c.p95_ms for c in cells) <= QUIET * min(c.p50_ms for c in cells)
