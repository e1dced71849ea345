"""Errors that cross from one process to another."""

from __future__ import annotations

import pickle

import pytest

from gateway.errors import (
    BertierError,
    FeedbackConflict,
    Infeasible,
    InvalidField,
    Overloaded,
    UnknownRequest,
)


@pytest.mark.parametrize(
    "error",
    [
        UnknownRequest("id", "", 10),
        FeedbackConflict("id"),
        InvalidField("answers: empty"),
        Infeasible("no plan", [{"plan": "small"}]),
        Overloaded("full", 250.0),
    ],
)
def test_an_error_that_another_process_found_is_the_same_here(error: BertierError) -> None:
    """Its class decides the status, its text what the caller reads."""
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
