"""The trace of a request shows the path that a reader of the code follows."""

from __future__ import annotations

import json

from gateway.docs.trace_request import trace
from tests.asgi import ASKED, make_app, make_service


async def test_the_trace_names_the_modules_on_the_path_of_an_answer() -> None:
    """From the frontend over the policy to the decoded answer, and no module of another request."""
    found = await trace(make_app(make_service()), json.dumps(ASKED))
    path = ["frontends.http.routes", "request.service", "routing.policy", "qa.codec"]
    entered = [name.removeprefix("gateway.") for name in found.calls]
    assert [name for name in entered if name in path] == path
    assert "docs.trace_request" not in entered


async def test_the_trace_counts_calls_that_only_keep_books() -> None:
    """An answer is counted once, by a call from outside the package."""
    found = await trace(make_app(make_service()), json.dumps(ASKED))
    assert found.bookkeeping.count("gateway.observability.metrics:Metrics.note_answer") == 1
