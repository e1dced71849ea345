"""The access log: one line for each answer of a share of the requests, and for each that got none.

Texts of questions, contexts and answers are in it only where the operator asked for them.
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
    """A request that is going to be logged."""

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
    """Log this share of the requests, 0 to 1; `texts`: with what was asked and answered."""
    global _what
    _what = _What(share, texts)


def begin(frontend: str, slo_class: str) -> Entry | None:
    """Return the entry of a request that begins; None: it is not of the share."""
    drawn = _what.share > 0 and random.random() < _what.share
    entry = Entry(frontend, slo_class) if drawn else None
    _entry.set(entry)
    return entry


def answered(question: Question, what: Answered) -> None:
    """Note an answer of the request at hand; one call may hold several questions."""
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
    """Write the lines of a request that has ended."""
    if entry is None:
        return
    fields = {"front": entry.frontend, "class": entry.slo_class, "outcome": outcome}
    for answer in entry.answers or ({"total_ms": round(took_s * 1e3, 3)},):
        log.info("request", extra={FIELDS: fields | answer})
