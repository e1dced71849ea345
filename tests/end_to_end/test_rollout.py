"""A candidate catalog in a real gateway under load: an equal one is promoted, a worse one withdrawn, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import store
from gateway.catalog.candidate import CANDIDATE, Terms
from gateway.catalog.schema import Decoding, Variant
from loadtest.quality import rollout_command, rollout_served
from loadtest.quality.rollout_served import Trial
from loadtest.stack import Stack, fresh_stack
from optimizer.data.question_sets import Example
from tests import tiny
from tests.end_to_end.conftest import REPOSITORY
from tests.fakes import TOKENIZER, make_catalog, make_variant

pytestmark = pytest.mark.end_to_end
MOST_S = 240.0  # on a busy machine; some ten seconds each otherwise


@pytest.mark.parametrize("workers", ["1", "2"])
def test_candidates_end_by_themselves(
    tmp_path: Path, examples: list[Example], workers: str
) -> None:
    """The whole way: files, checks, real models, the share, comparisons, the verdict, the switch."""
    variables = rollout_command.SERVED_VARIABLES
    flags = ("--backend", "embedded", "--workers", workers)
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


def test_candidates_before_a_triton_end_by_themselves(
    tmp_path: Path, examples: list[Example]
) -> None:
    """Their models are loaded into the Triton that answers, beside the current ones; tiny ones, in seconds."""
    shutil.copy(TOKENIZER, tmp_path / store.TOKENIZER)
    current = [in_triton(tmp_path, "small", 5), in_triton(tmp_path, "large", 20)]
    store.write(tmp_path, make_catalog(current, [0.5, 0.7]))
    equal = in_triton(tmp_path, "equal", 20)
    mute = replace(in_triton(tmp_path, "mute", 20), decoding=Decoding(null_threshold=-1e9))
    variables = rollout_command.SERVED_VARIABLES
    with fresh_stack(tmp_path, "--backend", "triton", variables=variables) as stack:
        for variant, result in ((equal, "promoted"), (mute, "withdrawn")):
            trial = asyncio.run(tried(stack, tmp_path, variant, examples))
            assert (trial.result, trial.lost) == (result, 0), trial
            assert trial.of_candidate > 0
    assert [v.name for v in store.read(tmp_path).variants] == ["equal"]


def in_triton(repository: Path, name: str, ms: float) -> Variant:
    """Write a tiny model of one instance; all of them answer alike."""
    sha256 = tiny.write_model(repository, name, max_batch_size=1, instances=1)
    return replace(make_variant(name, ms, sha256=sha256), instances=1)


async def tried(stack: Stack, folder: Path, variant: Variant, examples: list[Example]) -> Trial:
    catalog, terms = make_catalog([variant], [0.7]), Terms(share=0.5, promote_after=50)
    return await rollout_served.tried(
        stack, folder, variant.name, catalog, terms, examples, MOST_S / 2
    )
