"""A candidate catalog in a real gateway under load: an equal one is promoted, a worse one withdrawn, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gateway.catalog import candidate, store
from gateway.catalog.candidate import CANDIDATE, Terms
from gateway.catalog.candidate_classes import CANDIDATE as CANDIDATE_CLASSES
from gateway.catalog.candidate_classes import CLASSES
from gateway.catalog.schema import Decoding, Variant
from loadtest.quality import rollout_command, rollout_served
from loadtest.quality.rollout_served import Trial
from loadtest.stack import Stack, fresh_stack
from optimizer.data.question_sets import Example
from tests import tiny
from tests.end_to_end.conftest import REPOSITORY
from tests.fakes import TOKENIZER, make_catalog, make_variant

pytestmark = pytest.mark.end_to_end
BATCH = {"SLO-Class": "batch"}
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
    publish = partial(candidate.write, folder, catalog, terms)
    return await rollout_served.tried(stack, variant.name, publish, examples, MOST_S / 2)


@pytest.mark.parametrize("flags", [("embedded", "--workers", "2"), ("triton",)])
def test_candidate_classes_end_by_themselves(
    tmp_path: Path, examples: list[Example], flags: tuple[str, ...]
) -> None:
    """Other targets of a class for half of the requests: looser ones are met as well, one of 1 ms never."""
    variables = rollout_command.SERVED_VARIABLES
    backend = ("--backend", *flags)
    with rollout_served.gateway_on(REPOSITORY, tmp_path, *backend, variables=variables) as stack:
        looser, hopeless = asyncio.run(both_classes(stack, tmp_path, examples))
    assert (looser.result, hopeless.result) == ("promoted", "withdrawn"), (looser, hopeless)
    assert (looser.lost, hopeless.lost) == (0, 0)
    assert looser.of_candidate >= 50
    assert "latency_ms = 20000" in (tmp_path / CLASSES).read_text()
    (aside,) = tmp_path.glob("classes.withdrawn-*.toml")
    assert "slo" in aside.read_text().partition("\n")[0]


async def both_classes(stack: Stack, folder: Path, examples: list[Example]) -> list[Trial]:
    return [
        await rollout_served.tried(
            stack, name, partial(publish_class, folder, latency_ms), examples, MOST_S / 2, BATCH
        )
        for name, latency_ms in (("looser", 20_000), ("hopeless", 1))
    ]


def publish_class(folder: Path, latency_ms: int) -> None:
    text = (
        "[rollout]\nshare = 0.5\npromote_after = 50\n"
        f'[classes.batch]\nlatency_ms = {latency_ms}\npolicy = "prefer-latency"\n'
    )
    (folder / CANDIDATE_CLASSES).write_text(text)
