"""A candidate catalog in a real gateway under load: an equal one is promoted, a worse one withdrawn, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from gateway.catalog import candidate, store
from gateway.catalog.candidate import CANDIDATE, Terms
from gateway.catalog.candidate_classes import CANDIDATE as CANDIDATE_CLASSES
from gateway.catalog.candidate_classes import CLASSES
from gateway.catalog.schema import Decoding, GoldenLogits, Variant
from gateway.domain import Question
from loadtest.quality import rollout_command, rollout_served
from loadtest.quality.rollout_served import Trial
from loadtest.stack import Stack, fresh_stack
from optimizer.data.question_sets import Example
from tests import tiny
from tests.end_to_end.conftest import REPOSITORY
from tests.fakes import CONTEXT, QUESTION, TOKENIZER, encoder, make_catalog, make_variant

pytestmark = pytest.mark.end_to_end
BATCH = {"SLO-Class": "batch"}
MOST_S = 240.0  # on a busy machine; some ten seconds each otherwise


@dataclass(frozen=True)
class Gateway:
    """A gateway, and the repository it serves."""

    stack: Stack
    repository: Path


@pytest.fixture(scope="module")
def embedded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """One of this many workers, on some of the models that ship."""
    folder = tmp_path_factory.mktemp("embedded")
    flags = ("--backend", "embedded", "--workers", request.param)
    variables = rollout_command.SERVED_VARIABLES
    with rollout_served.gateway_on(REPOSITORY, folder, *flags, variables=variables) as stack:
        yield Gateway(stack, folder)


@pytest.fixture(scope="module")
def before_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One with its own Triton, on tiny models that answer alike."""
    folder = tmp_path_factory.mktemp("triton")
    shutil.copy(TOKENIZER, folder / store.TOKENIZER)
    current = [in_triton(folder, "small", 5), in_triton(folder, "large", 20)]
    store.write(folder, make_catalog(current, [0.5, 0.7]))
    variables = rollout_command.SERVED_VARIABLES
    with fresh_stack(folder, "--backend", "triton", variables=variables) as stack:
        yield Gateway(stack, folder)


def in_triton(repository: Path, name: str, ms: float) -> Variant:
    """Write a tiny model of one instance; all of them answer alike, as their certificates say."""
    sha256 = tiny.write_model(repository, name, max_batch_size=1, instances=1)
    windows = encoder().encode(Question(QUESTION, CONTEXT))
    start, end = tiny.expected_logits(
        windows.input_ids, windows.attention_mask, windows.token_type_ids
    )
    golden = GoldenLogits(tuple(start[0].tolist()), tuple(end[0].tolist()))
    return replace(make_variant(name, ms, sha256=sha256), instances=1, golden=(golden,))


@pytest.mark.parametrize("embedded", ["2"], indirect=True)
def test_candidate_classes_end_by_themselves(embedded: Gateway, examples: list[Example]) -> None:
    """Other targets of a class for half of the requests, also of several workers."""
    assert_classes_end_by_themselves(embedded, examples)


@pytest.mark.parametrize("embedded", ["2", "1"], indirect=True)
def test_candidates_end_by_themselves(embedded: Gateway, examples: list[Example]) -> None:
    """The whole way: files, checks, real models, the share, comparisons, the verdict, the switch."""
    stack, folder, catalog = embedded.stack, embedded.repository, store.read(REPOSITORY)
    equal, worse = asyncio.run(rollout_command.both(stack, folder, catalog, examples, MOST_S))
    assert (equal.result, worse.result) == ("promoted", "withdrawn"), (equal, worse)
    assert (equal.lost, worse.lost) == (0, 0)
    assert equal.of_candidate >= 50
    assert worse.of_candidate > 0
    assert {v.name for v in store.read(folder).variants} == {"minilm-6"}
    assert not (folder / CANDIDATE).exists()
    (aside,) = folder.glob("catalog.withdrawn-*.json")
    assert "disagreement" in json.loads(aside.read_text())["rollout"]["withdrawn"]


def test_candidate_classes_before_a_triton_end_by_themselves(
    before_triton: Gateway, examples: list[Example]
) -> None:
    """One process decides for itself."""
    assert_classes_end_by_themselves(before_triton, examples)


def test_candidates_before_a_triton_end_by_themselves(
    before_triton: Gateway, examples: list[Example]
) -> None:
    """Their models are loaded into the Triton that answers, beside the current ones."""
    stack, folder = before_triton.stack, before_triton.repository
    equal = in_triton(folder, "equal", 20)
    mute = replace(in_triton(folder, "mute", 20), decoding=Decoding(null_threshold=-1e9))
    for variant, result in ((equal, "promoted"), (mute, "withdrawn")):
        trial = asyncio.run(tried(stack, folder, variant, examples))
        assert (trial.result, trial.lost) == (result, 0), trial
        assert trial.of_candidate > 0
    assert [v.name for v in store.read(folder).variants] == ["equal"]


async def tried(stack: Stack, folder: Path, variant: Variant, examples: list[Example]) -> Trial:
    catalog, terms = make_catalog([variant], [0.7]), Terms(share=0.5, promote_after=50)
    publish = partial(candidate.write, folder, catalog, terms)
    return await rollout_served.tried(stack, variant.name, publish, examples, MOST_S / 2)


def assert_classes_end_by_themselves(gateway: Gateway, examples: list[Example]) -> None:
    """Looser targets are met as well and taken over; hopeless ones never, and are withdrawn."""
    looser, hopeless = asyncio.run(both_classes(gateway, examples))
    assert (looser.result, hopeless.result) == ("promoted", "withdrawn"), (looser, hopeless)
    assert (looser.lost, hopeless.lost) == (0, 0)
    assert looser.of_candidate >= 50
    assert "latency_ms = 20000" in (gateway.repository / CLASSES).read_text()
    (aside,) = gateway.repository.glob("classes.withdrawn-*.toml")
    assert "slo" in aside.read_text().partition("\n")[0]


async def both_classes(gateway: Gateway, examples: list[Example]) -> list[Trial]:
    return [
        await rollout_served.tried(
            gateway.stack,
            name,
            partial(publish_class, gateway.repository, target),
            examples,
            MOST_S / 2,
            BATCH,
        )
        for name, target in (
            ("looser", "latency_ms = 20000"),
            # Answered late and below its floor: a request that fails at its deadline breaks no SLO alone.
            ("hopeless", "latency_ms = 1\nmin_f1 = 0.99\ntimeout_ms = 20000"),
        )
    ]


def publish_class(folder: Path, target: str) -> None:
    text = (
        "[rollout]\nshare = 0.5\npromote_after = 50\n"
        f'[classes.batch]\n{target}\npolicy = "prefer-latency"\n'
    )
    (folder / CANDIDATE_CLASSES).write_text(text)
