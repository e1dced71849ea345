"""The CPU time of a request, held by count: wall-clock time says nothing on a busy machine."""

from __future__ import annotations

import json
import time

import pytest

from tests import pauses, request_count
from tests.request_count import PYTHON, RECORDED

TOLERANCE = 0.05


def test_a_request_takes_as_many_calls_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to the path of every request is seen in review, not in production."""
    for name, read in pauses.OF_THE_HOST.items():
        monkeypatch.setattr(time, name, read)  # a clock of the tests is a function in Python
    recorded = json.loads(RECORDED.read_text()).get(PYTHON)
    how = "if that is meant, record it: python -m tests.request_count --record"
    assert recorded is not None, f"nothing is recorded for Python {PYTHON}; {how}"
    found = request_count.count()
    for kind, before in recorded.items():
        off = found[kind] / before - 1
        assert abs(off) <= TOLERANCE, (
            f"a request takes {found[kind]} calls of {kind} functions, {off:+.1%} of the {before} recorded; {how}"
        )
