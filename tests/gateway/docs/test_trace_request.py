"""The trace of a request shows the path that a reader of the code follows."""

from __future__ import annotations

import json

from gateway.docs.trace_request import trace
from tests.asgi import QUESTION_BODY, make_app, make_service


async def test_the_trace_names_the_modules_on_the_path_of_an_answer() -> None:
    """A reader can follow them: frontend, service, encoder, policy; the tracer itself is left out."""
    found = await trace(make_app(make_service()), json.dumps(QUESTION_BODY))
    path = ["frontends.http.routes", "request.service", "qa.codec", "routing.policy"]
    entered = [name.removeprefix("gateway.") for name in found.calls]
    assert [name for name in entered if name in path] == path
    assert "docs.trace_request" not in entered


async def test_the_trace_counts_bookkeeping_calls() -> None:
    """A call counts where it enters observability, not where observability calls itself."""
    found = await trace(make_app(make_service()), json.dumps(QUESTION_BODY))
    assert found.bookkeeping.count("gateway.observability.observer:Observer.question") == 1
    assert "gateway.observability.metrics:Metrics.note_answer" not in found.bookkeeping


async def test_a_request_is_recorded_by_a_handful_of_calls() -> None:
    """What is new to record belongs into the observer, not along the request."""
    found = await trace(make_app(make_service()), json.dumps(QUESTION_BODY))
    assert len(found.bookkeeping) <= 10, found.bookkeeping


async def test_a_request_enters_no_more_modules_than_it_did() -> None:
    """A reader has to follow them all; a new one on the path needs a reason, or the place of another."""
    found = await trace(make_app(make_service()), json.dumps(QUESTION_BODY))
    assert len(found.calls) <= 35, list(found.calls)
