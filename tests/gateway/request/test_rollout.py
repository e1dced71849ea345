"""Which set answers while a candidate is tried, and what is learned from it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.api_keys import ApiKey
from gateway.auth import access
from gateway.auth.access import Caller
from gateway.catalog.schema import Decoding
from gateway.clock import now_ms
from gateway.domain import Answered, Question, SetName, Size, SloRequest
from gateway.errors import BackendError, BackendUnavailable, BadInput, UnknownVariant
from gateway.latency.model import LatencyModel
from gateway.monitoring.rollout_tests import Chances, Rate, RolloutTests, Verdict
from gateway.observability import logs
from gateway.observability.metrics import Metrics
from gateway.request.rollout import Running
from gateway.request.service import AnswerService
from gateway.request.shadow import DEADLINE_MS
from loadtest.lab import replay
from tests.asgi import QUESTION_BODY, post
from tests.fakes import (
    CONTEXT,
    HOST,
    QUESTION,
    FakeBackend,
    make_catalog,
    make_variant,
    patient,
    serving_set,
    small_and_large,
)

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)
ANY = SloRequest(min_f1=0.4)
SHA = "ab" * 32


def service_with(
    backend: FakeBackend | None = None,
    *,
    share: float = 0.3,
    shadow: bool = False,
    clock: Callable[[], float] = now_ms,
    **settings: Any,
) -> AnswerService:
    """Return a gateway that tries `new` (5 ms, F1 0.6) beside `small` and `large`."""
    service = AnswerService(backend or FakeBackend(), patient(**settings), Metrics(), clock)
    service.serving = serving_set(small_and_large())
    candidate = serving_set(make_catalog([make_variant("new", 5, sha256="1" * 64)], [0.6]))
    latency = LatencyModel(candidate.profiles, HOST.cores, {"new": 2}, service.serving.latency)
    running = Running(
        SHA,
        replace(candidate, latency=latency),
        share,
        shadow,
        RolloutTests(Chances()),
        dict.fromkeys(SetName, 0.0),
    )
    service.rollout.running = running
    return service


def running_in(service: AnswerService) -> Running:
    assert service.rollout.running is not None
    return service.rollout.running


async def ask(
    service: AnswerService,
    request_id: str,
    request: SloRequest = ANY,
    question: Question = EXAMPLE_QUESTION,
) -> Answered:
    logs.request_id.set(request_id)
    return await service.answer(question, request, service._clock())


async def asked(service: AnswerService, n: int) -> list[Answered]:
    return [await ask(service, f"request {i}") for i in range(n)]


@pytest.fixture
def key() -> Iterator[None]:
    yield
    access.CALLER.set(None)


def be(service: AnswerService, name: str) -> None:
    key = ApiKey(sha256="0" * 64)
    access.CALLER.set(Caller(name, key, None, service.metrics))


async def test_a_share_of_the_requests_goes_to_the_candidate() -> None:
    """Within three standard deviations of a binomial count: 600 requests, a share of 0.3."""
    service = service_with()
    found = Counter(a.served_by for a in await asked(service, 600))
    sd = (600 * 0.3 * 0.7) ** 0.5
    assert abs(found[SetName.CANDIDATE] - 180) <= 3 * sd
    assert found.total() == 600


async def test_a_request_that_comes_again_is_answered_by_the_same_set() -> None:
    """A retry must not flip between two catalogs."""
    service = service_with()
    one, two = [[a.served_by for a in await asked(service, 60)] for _ in range(2)]
    assert one == two
    assert len(set(one)) == 2


async def test_a_caller_with_a_key_stays_with_one_set(key: None) -> None:
    """Its answers would change from request to request otherwise; of 300 callers a share is drawn."""
    service, by_caller = service_with(), {}
    for name in (f"caller {i}" for i in range(300)):
        be(service, name)
        by_caller[name] = {a.served_by for a in await asked(service, 2)}
    assert all(len(found) == 1 for found in by_caller.values())
    chosen = sum(found == {SetName.CANDIDATE} for found in by_caller.values())
    assert abs(chosen - 90) <= 3 * (300 * 0.3 * 0.7) ** 0.5


async def test_callers_may_be_left_out_of_it(key: None) -> None:
    """Few callers who ask different things cannot be compared: then requests are drawn."""
    service = service_with(candidate_sticky="request")
    be(service, "the only one")
    assert len({a.served_by for a in await asked(service, 40)}) == 2


async def test_another_candidate_meets_other_requests() -> None:
    """Or the same callers would be the first every time."""
    service = service_with()
    before = [a.served_by for a in await asked(service, 60)]
    running_in(service).sha256 = "cd" * 32
    assert before != [a.served_by for a in await asked(service, 60)]


async def test_questions_of_one_batch_are_drawn_by_themselves() -> None:
    """They share a request id; a thousand hard ones must not count against one set alone."""
    service = service_with()
    questions = [Question(QUESTION, f"{CONTEXT} {i}") for i in range(40)]
    assert len({(await ask(service, "one", question=q)).served_by for q in questions}) == 2


async def test_a_pin_of_a_current_variant_is_not_touched() -> None:
    """Somebody evaluates that variant; one that only the candidate has is the candidate's."""
    service = service_with(share=1.0)
    for name, by in (("large", SetName.CURRENT), ("new", SetName.CANDIDATE)):
        found = await ask(service, "pinned", SloRequest(variant=name))
        assert (found.variant, found.served_by) == (name, by)
    with pytest.raises(UnknownVariant):
        await ask(service, "pinned", SloRequest(variant="none"))
    assert running_in(service).tests.rates[Rate.SLO].candidate.n == 0  # pins are no sample


async def test_a_pin_of_a_candidate_that_has_just_ended_is_unavailable() -> None:
    """It was admitted a moment before; a fault of ours in its place would be a 500."""
    service = service_with()
    slo = SloRequest(variant="new")
    admission = await service.admit(slo, "http")
    service.rollout.running = None
    with pytest.raises(BackendUnavailable, match="new: not served any more"):
        await service.answer(EXAMPLE_QUESTION, slo, now_ms(), admission=admission)


async def test_a_plan_may_pin_a_candidates_variant() -> None:
    """It says what an answer would be, by the same catalog."""
    report = await service_with().plan(SloRequest(variant="new"))
    assert report.decision.option is not None
    assert report.decision.option.plan.name == "new"


async def test_a_refusal_of_the_candidate_is_not_held_back() -> None:
    """The current set would begin when half of the time is gone."""
    service = service_with(share=1.0)
    running = running_in(service)
    slow = make_variant("new", 100_000, sha256="1" * 64)  # no deadline is long enough
    candidate = serving_set(make_catalog([slow], [0.6]))
    running.serving = candidate
    answered = await ask(service, "request")
    assert answered.served_by is SetName.CURRENT
    assert (
        answered.timings.total < 500
    )  # a held-back refusal ends shortly before the deadline of 1,000 ms
    assert running.tests.rates[Rate.SLO].candidate.bad == 1
    assert running.tests.rates[Rate.ERRORS].candidate.bad == 0


async def test_without_a_candidate_no_answer_names_a_catalog() -> None:
    """Nothing changes for those who try none."""
    service = service_with()
    service.rollout.running = None
    assert {a.served_by for a in await asked(service, 5)} == {None}


async def test_the_current_set_answers_where_the_candidate_fails() -> None:
    """No request is lost to a trial; what failed counts against the candidate, which ends soon."""
    backend = FakeBackend()
    backend.errors["new"] = BackendError("new: broken")
    service = service_with(backend)
    found = await asked(service, 300)
    assert {a.variant for a in found} == {"small"}
    assert {a.served_by for a in found} == {SetName.CURRENT}
    tests = running_in(service).tests
    assert tests.verdict is Verdict.WORSE
    errors = tests.rates[Rate.ERRORS]
    assert errors.candidate.n == errors.candidate.bad <= 20
    asked_new = backend.asked.count("new")
    await asked(service, 50)
    assert backend.asked.count("new") == asked_new  # no further request for one that is worse


async def test_a_failed_candidate_and_its_substitute_are_one_line_of_the_decision_log(
    tmp_path: Path,
) -> None:
    """It was one request: a replay that counts two has load that never was."""
    file = tmp_path / "decisions.jsonl"
    backend = FakeBackend()
    backend.errors["new"] = BackendError("new: broken")
    service = service_with(backend, share=1.0, retry_share=0.0, decisions_file=file)
    await ask(service, "a")
    service.rollout.running = None
    await ask(service, "b")
    service.decisions.write()
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["plan"], first["outcome"]) == ("small", "answered")
    assert (first["candidate"]["plan"], first["candidate"]["outcome"]) == ("new", "failed")
    assert second["candidate"] is None
    assert [d.outcome for d in replay.read(file)] == ["answered", "answered"]


async def test_a_candidate_below_the_floor_is_worse() -> None:
    """Both sets are held to the SLO as the current catalog resolves it."""
    service = service_with()
    for i in range(400):
        await ask(service, f"request {i}", SloRequest(min_f1=0.65))
    tests = running_in(service).tests
    assert tests.verdict is Verdict.WORSE
    assert tests.reason.startswith("slo ")


async def test_a_bad_request_counts_for_nobody() -> None:
    """Its caller is at fault."""
    service = service_with()
    for i in range(20):
        with pytest.raises(BadInput):
            await ask(service, f"request {i}", question=Question("", CONTEXT))
    rates = running_in(service).tests.rates
    assert rates[Rate.SLO].candidate.n == rates[Rate.SLO].current.n == 0


async def test_a_caller_that_waited_in_vain_counts() -> None:
    """Or a candidate that is so slow that callers leave would look as if nobody had asked it."""
    backend, now = FakeBackend(), [0.0]
    backend.gates["new"] = asyncio.Event()
    service = service_with(backend, share=1.0, clock=lambda: now[0])
    patient = SloRequest(min_f1=0.4, latency_ms=1000)
    for waited_ms, n_bad in ((999.0, 0), (1001.0, 1)):
        task = asyncio.create_task(ask(service, "slow", patient))
        await backend.until_asked(n_bad + 1)
        now[0] += waited_ms
        task.cancel()
        await asyncio.wait([task])
        assert running_in(service).tests.rates[Rate.SLO].candidate.bad == n_bad


async def test_answers_of_both_are_compared_with_the_largest() -> None:
    """Floors can be wrong; a candidate that answers otherwise than the largest shows."""
    backend = FakeBackend()
    backend.logits["new"] = -6.0  # it finds no answer, or another
    service = service_with(backend, share=0.5, candidate_compared=1.0)
    for i in range(400):
        await ask(service, f"request {i}")
        await service.rollout.idle()
    tests = running_in(service).tests
    assert tests.verdict is Verdict.WORSE
    assert tests.reason.startswith("disagreement ")
    sample = service.metrics.registry.get_sample_value
    labels = {"catalog": "current", "outcome": "agreed"}
    assert sample("bertier_rollout_compared_total", labels)


async def test_the_same_model_with_another_threshold_is_compared() -> None:
    """A candidate may be the current model that abstains more often: its file says nothing of that."""
    service = service_with(share=0.5, candidate_compared=1.0)
    large = small_and_large().variant("large")
    mute = replace(large, name="mute", decoding=Decoding(null_threshold=-1e9))
    running = running_in(service)
    running.serving = serving_set(make_catalog([mute], [0.7]))
    await asked(service, 40)
    await service.rollout.idle()
    assert running.tests.rates[Rate.DISAGREEMENT].candidate.bad > 0
    assert running.tests.rates[Rate.DISAGREEMENT].current.bad == 0


async def test_without_room_no_answer_is_compared() -> None:
    """Nor one of the largest variant, which need not be asked: its set alone would look good under load."""
    now = [0.0]
    service = service_with(share=0.5, candidate_compared=1.0, clock=lambda: now[0])
    assert service.serving is not None
    other = service.serving.latency.begin("small", Size(128, 1), 0.0)
    for i in range(8):
        await ask(service, f"request {i}", SloRequest(min_f1=0.65))
    now[0] += 2 * DEADLINE_MS
    await service.rollout.idle()
    service.serving.latency.leave(other, now[0])
    compared = running_in(service).tests.rates[Rate.DISAGREEMENT]
    assert compared.current.n == compared.candidate.n == 0
    dropped = [
        service.metrics.registry.get_sample_value(
            "bertier_rollout_compared_total", {"catalog": name, "outcome": "dropped"}
        )
        for name in SetName
    ]
    assert sum(n or 0 for n in dropped) == 8


async def test_in_shadow_no_caller_gets_the_candidates_answer() -> None:
    """Its errors and disagreements count all the same: each request is a pair of its own."""
    backend = FakeBackend()
    backend.errors["new"] = BackendError("new: broken")
    service = service_with(backend, share=1.0, shadow=True)
    for i in range(40):
        assert (await ask(service, f"request {i}")).served_by is SetName.CURRENT
        await service.rollout.idle()
    tests = running_in(service).tests
    assert tests.verdict is Verdict.WORSE
    assert tests.reason.startswith("errors ")


async def test_cached_answers_are_each_catalogs_own() -> None:
    """A cache that mixes two catalogs would answer with the wrong model."""
    service = service_with(cache_bytes=1 << 20)
    await asked(service, 40)
    found = await asked(service, 40)
    assert {(a.served_by, a.variant) for a in found} == {
        (SetName.CURRENT, "small"),
        (SetName.CANDIDATE, "new"),
    }
    assert all(a.age_ms is not None for a in found)
    rates = running_in(service).tests.rates[Rate.SLO]
    assert rates.candidate.n + rates.current.n == 2  # one question, one SLO: asked once of each


async def test_the_answer_says_which_catalog_it_is_from() -> None:
    """In a header and in the explanation; without a candidate neither is there."""
    service = service_with(share=1.0)
    headers = {"SLO-Min-F1": "0.4", "SLO-Explain": "1"}
    reply = await post(service, json=QUESTION_BODY, headers=headers)
    assert reply.headers["SLO-Catalog"] == "candidate"
    assert reply.json()["explain"]["catalog"] == "candidate"
    service.rollout.running = None
    reply = await post(service, json=QUESTION_BODY, headers=headers)
    assert "SLO-Catalog" not in reply.headers
    assert "catalog" not in reply.json()["explain"]
