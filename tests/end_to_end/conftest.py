"""The whole system for real: gateway, Triton, and the models that ship."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack
from optimizer.data.question_sets import Example

REPOSITORY = Path(__file__).parents[2] / "model_repository"
POLL_S = 0.05  # what is waited for needs the cores


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A running gateway with its own Triton on the shipped models."""
    with fresh_stack(REPOSITORY) as running:
        yield running


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return questions(None, 8)


def until(fact: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(POLL_S)
