"""A candidate catalog in a real gateway under load: an equal one is promoted, a worse one withdrawn, nothing is lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.catalog import store
from gateway.catalog.candidate import CANDIDATE
from loadtest.quality import rollout_command, rollout_served
from optimizer.data.question_sets import Example
from tests.end_to_end.conftest import REPOSITORY

pytestmark = pytest.mark.end_to_end
MOST_S = 240.0  # on a busy machine; some ten seconds each otherwise


def test_candidates_end_by_themselves(tmp_path: Path, examples: list[Example]) -> None:
    """The whole way: files, checks, real models, the share, comparisons, the verdict, the switch."""
    variables = rollout_command.SERVED_VARIABLES
    flags = ("--backend", "embedded")
    with rollout_served.gateway_on(REPOSITORY, tmp_path, *flags, variables=variables) as stack:
        catalog = store.read(REPOSITORY)
        equal, worse = asyncio.run(rollout_command.both(stack, tmp_path, catalog, examples, MOST_S))
    assert (equal.result, worse.result) == ("promoted", "withdrawn"), (equal, worse)
    assert (equal.lost, worse.lost) == (0, 0)
    assert equal.of_candidate >= 50
    assert worse.of_candidate > 0
    assert {v.name for v in store.read(tmp_path).variants} == {"minilm-6"}
    assert not (tmp_path / CANDIDATE).exists()
    (aside,) = tmp_path.glob("catalog.withdrawn-*.json")
    assert "disagreement" in json.loads(aside.read_text())["rollout"]["withdrawn"]
