"""The access log: for a sampled share of the requests, one line per answer or per request without one.

It contains the texts of questions, contexts and answers only if the operator enables that.
"""

from __future__ import annotations

import logging
import random
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from gateway.domain import STAGES, Answered, Question
from gateway.observability.logs import FIELDS

log = logging.getLogger("gateway.request_log")  # documented: operators filter by it


@dataclass(slots=True)
class Entry:
    """A request that will be logged."""

    frontend: str
    slo_class: str
    answers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _What:
    share: float = 0.0
    texts: bool = False


_what = _What()
_entry: ContextVar[Entry | None] = ContextVar("entry", default=None)


def set_up(share: float, *, texts: bool) -> None:
    """Log this share of the requests, 0 to 1; `texts`: include question, context and answer."""
    global _what
    _what = _What(share, texts)


def begin(frontend: str, slo_class: str) -> Entry | None:
    """Return the entry of a request that begins; None: it is not sampled."""
    drawn = _what.share > 0 and random.random() < _what.share
    entry = Entry(frontend, slo_class) if drawn else None
    _entry.set(entry)
    return entry


def answered(question: Question, what: Answered) -> None:
    """Add an answer to the entry of the current request; one request may hold several questions."""
    entry = _entry.get()
    if entry is None:
        return
    fields: dict[str, Any] = {
        "plan": what.option.plan.name,
        "variant": what.variant,
        "reason": what.decision.reason.value,
        "met": what.met,
        **{f"{stage}_ms": round(getattr(what.timings, stage), 3) for stage in (*STAGES, "total")},
    }
    if _what.texts:
        texts = {"question": question.question, "context": question.context}
        fields |= texts | {"answer": what.answer.text}
    entry.answers.append(fields)


def end(entry: Entry | None, outcome: str, took_s: float) -> None:
    """Write the lines of a request that ended."""
    if entry is None:
        return
    fields = {"front": entry.frontend, "class": entry.slo_class, "outcome": outcome}
    for answer in entry.answers or ({"total_ms": round(took_s * 1e3, 3)},):
        log.info("request", extra={FIELDS: fields | answer})
