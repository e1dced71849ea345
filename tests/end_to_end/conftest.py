"""The whole system for real: gateway, Triton, and the models that ship."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack
from optimizer.data.question_sets import Example

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A running gateway with its own Triton on the shipped models."""
    with fresh_stack(REPOSITORY) as running:
        yield running


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return questions(None, 8)
