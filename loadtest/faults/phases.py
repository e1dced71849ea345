"""What became of the requests before, during and after an event. Pure: results in, rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from loadtest.drive.outcomes import Outcome, Result

STREAK = 12  # this many met SLOs in a row count as recovered
RECOVERY_S = 5.0
CLIENT = "client"  # the way that asks again by itself
REFUSED = (Outcome.SHED, Outcome.REFUSED)

Seen = Sequence[tuple[str, Result]]  # by which way, and what became of it


class Phase(StrEnum):
    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the requests of one phase; those of our client apart, as it asks again."""

    phase: Phase
    seconds: float
    sent: int
    answered: int
    refused: int
    lost: int  # no answer, or an error
    attained: float  # share answered in time by a plan that certifies the floor asked for
    client_sent: int
    client_failed: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """What was on its way when a gateway was killed."""

    there: int  # requests that the gateway was answering, by its own count just before
    anywhere: int  # that callers had sent to it or the other, and that had not come back
    lost_beside: int  # that were lost though they were not on their way then


@dataclass(frozen=True, slots=True)
class Episode:
    """One event and its three phases."""

    event: str
    rows: tuple[Row, Row, Row]
    recovered_s: float
    in_flight: InFlight | None = None
    failures: tuple[str, ...] = ()  # of requests refused or lost in all phases: what was said

    @property
    def during(self) -> Row:
        return self.rows[1]

    @property
    def lost(self) -> int:
        return sum(row.lost for row in self.rows)

    def complaint(self) -> str:
        """Return what misses its objective; empty: nothing."""
        calm = self.rows[0].lost
        lost = self.lost if self.in_flight is None else calm + self.in_flight.lost_beside
        if lost:
            return f"{self.event}: {lost} lost that were not on their way when a gateway died"
        if refused := sum(r.refused for r in self.rows):
            return f"{self.event}: {refused} refused, though there was capacity for all"
        if failed := sum(r.client_failed for r in self.rows):
            return f"{self.event}: {failed} failed although the client asked again"
        if self.recovered_s > RECOVERY_S:
            return f"{self.event}: recovered after {self.recovered_s:.1f} s, the objective is {RECOVERY_S:g} s"
        return ""


def kept(result: Result) -> bool:
    return result.in_time and result.certified


def recovered_s(seen: Seen, event_ms: float) -> float | None:
    """Return how long after an event the next streak of met SLOs began; None: not yet.

    What was under way at the event counts, too.
    """
    after = sorted((r for _, r in seen if r.ended_ms > event_ms), key=lambda r: r.request.index)
    run: list[Result] = []
    for result in after:
        run = [*run, result] if kept(result) else []
        if len(run) == STREAK:
            return max(0.0, run[0].request.at_ms - event_ms) / 1e3
    return None


def in_flight(seen: Seen, there: int, killed_ms: float, dead_ms: float) -> InFlight:
    """Return what was on its way while a gateway was killed; what our client asked again is not of it."""
    lost = [r for way, r in seen if way != CLIENT and _lost(r)]
    on_way = [r for _, r in seen if r.sent_ms <= dead_ms and r.ended_ms >= killed_ms]
    beside = [r for r in lost if r.ended_ms >= killed_ms and r not in on_way]
    return InFlight(there, len(on_way), len(beside))


def failures(seen: Seen, from_ms: float, to_ms: float) -> tuple[str, ...]:
    """Return what was said of requests that were not answered, by way."""
    return tuple(
        f"{r.sent_ms / 1e3:.2f} s {way} {r.reply.outcome}: {r.reply.detail}"
        for way, r in seen
        if from_ms <= r.sent_ms < to_ms and not r.answered
    )


def _lost(result: Result) -> bool:
    return not result.answered and result.reply.outcome not in REFUSED


def rows(
    seen: Seen, from_ms: float, event_ms: float, over_ms: float, to_ms: float
) -> tuple[Row, Row, Row]:
    """Return the three phases; a request that was under way at the event belongs to 'during'."""

    def phase_of(result: Result) -> Phase | None:
        if not from_ms <= result.sent_ms < to_ms:
            return None
        if result.ended_ms <= event_ms:
            return Phase.BEFORE
        return Phase.DURING if result.sent_ms < over_ms else Phase.AFTER

    spans = {Phase.BEFORE: event_ms - from_ms, Phase.DURING: over_ms - event_ms}
    spans[Phase.AFTER] = to_ms - over_ms
    before, during, after = (
        _row(phase, spans[phase] / 1e3, [(w, r) for w, r in seen if phase_of(r) is phase])
        for phase in Phase
    )
    return before, during, after


def _row(phase: Phase, seconds: float, seen: Seen) -> Row:
    results = [result for way, result in seen if way != CLIENT]
    of_client = [result for way, result in seen if way == CLIENT]
    answered, lost = sum(r.answered for r in results), sum(map(_lost, results))
    return Row(
        phase=phase,
        seconds=seconds,
        sent=len(results),
        answered=answered,
        refused=len(results) - answered - lost,
        lost=lost,
        attained=sum(map(kept, results)) / len(results) if results else 1.0,
        client_sent=len(of_client),
        client_failed=sum(not r.answered for r in of_client),
    )


HEAD = (
    "| event | | s | sent | answered | refused | lost | attained | recovered after s | client sent | failed |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def markdown(episodes: Sequence[Episode]) -> str:
    """Return the table."""
    return "\n".join([HEAD, *(_line(e, row) for e in episodes for row in e.rows)])


def _line(episode: Episode, row: Row) -> str:
    during = row.phase is Phase.DURING
    cells = [
        episode.event if row.phase is Phase.BEFORE else "",
        str(row.phase),
        f"{row.seconds:.1f}",
        *(f"{n:,}" for n in (row.sent, row.answered, row.refused, row.lost)),
        f"{row.attained:.3f}",
        f"{episode.recovered_s:.2f}" if during else "",
        str(row.client_sent),
        str(row.client_failed),
    ]
    return f"| {' | '.join(cells)} |"
