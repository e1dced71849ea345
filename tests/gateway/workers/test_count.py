"""How many workers there are."""

from __future__ import annotations

import pytest

from gateway import workers
from gateway.settings import Settings


@pytest.mark.parametrize(("cpu", "count"), [(0.2, 1), (1.0, 1), (1.5, 1), (2.0, 2), (3.9, 3)])
def test_a_part_of_a_core_is_worth_no_worker_of_its_own(cpu: float, count: int) -> None:
    """Two workers on one core and a half would wait for each other."""
    assert workers.whole(cpu) == count


def test_a_number_is_taken_as_it_is() -> None:
    """Who asks for more than there are cores gets a warning, and the workers."""
    assert workers.count(Settings(workers=7)) == 7
