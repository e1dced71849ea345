"""Feedback on answers: what it counts for, what is refused, and what is kept."""

from __future__ import annotations

import json
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.api_keys import ApiKey
from gateway.auth import access
from gateway.auth.access import Caller
from gateway.clock import now_ms
from gateway.domain import Question, SetName, SloRequest
from gateway.errors import FeedbackConflict, InvalidField, UnknownRequest
from gateway.monitoring.prediction_powered import FEWEST
from gateway.monitoring.rollout_tests import Chances, RolloutTests
from gateway.monitoring.sequential_tests import Comparison
from gateway.observability import logs
from gateway.observability.metrics import Metrics
from gateway.request.feedback import Truth
from gateway.request.rollout import Running
from gateway.request.service import AnswerService
from gateway.settings import SettingsError, read
from optimizer.data import question_files
from tests.asgi import client, make_service, post
from tests.fakes import QUESTION, serving_set, small_and_large

RIGHT = Truth(right=True)
CONTEXT = "Normans gave their name to Normandy."  # the fake model answers with its first word
QUESTION_BODY = {"question": QUESTION, "context": CONTEXT}


async def answered(service: AnswerService, request_id: str, own_id: str = "") -> str:
    """Ask as a request of this id; return the answer."""
    logs.request_id.set(request_id)
    question = Question(QUESTION, CONTEXT, own_id)
    patient = SloRequest(latency_ms=60_000.0)  # on a busy host, too
    return (await service.answer(question, patient, now_ms())).answer.text


def value(service: AnswerService, name: str, **labels: str) -> float | None:
    service.show_live()  # as before every scrape
    return service.metrics.registry.get_sample_value(name, labels)


async def test_a_right_answer_counts_by_its_words() -> None:
    """F1 is the SQuAD rule's, although no text was kept."""
    service = make_service(feedback_requests=10)
    text = await answered(service, "a")
    scored = await service.feedback.report(("a", ""), Truth((f"{text} of old", "nothing like it")))
    assert (scored.plan, scored.exact) == ("large", 0.0)
    assert 0 < scored.f1 < 1
    await answered(service, "b")
    same = await service.feedback.report(("b", ""), Truth((f"the {text.upper()}!",)))
    assert (same.f1, same.exact) == (1.0, 1.0)


async def test_nothing_is_kept_of_a_text() -> None:
    """Who reads the memory of a gateway finds no answer in it."""
    service = make_service(feedback_requests=10)
    text = await answered(service, "a")
    assert text
    assert text not in repr(service.feedback._kept)


async def test_a_question_without_an_answer_is_reported_by_an_empty_list() -> None:
    """To answer it all the same is wrong."""
    service = make_service(feedback_requests=10)
    await answered(service, "a")
    assert (await service.feedback.report(("a", ""), Truth(()))).f1 == 0.0


async def test_the_same_feedback_again_changes_nothing_and_other_is_refused() -> None:
    """A caller whose connection broke sends it again."""
    service = make_service(feedback_requests=10)
    await answered(service, "a")
    first = await service.feedback.report(("a", ""), RIGHT)
    assert await service.feedback.report(("a", ""), RIGHT) == first
    with pytest.raises(FeedbackConflict, match="the first one counts"):
        await service.feedback.report(("a", ""), Truth(right=False))
    assert value(service, "bertier_live_known_answers", catalog="current", plan="large") == 1
    assert value(service, "bertier_feedback_total", outcome="repeated") == 1


async def test_only_the_last_answers_are_remembered() -> None:
    """Memory is bounded, and the numbers are of these answers alone."""
    service = make_service(feedback_requests=2)
    for name in "abc":
        await answered(service, name)
        await service.feedback.report((name, ""), RIGHT)
    with pytest.raises(UnknownRequest, match="last 2"):
        await service.feedback.report(("a", ""), RIGHT)
    assert service.serving is not None
    assert service.feedback.live(service.serving)["large"]["answers"] == 2
    assert len(service.feedback) == 2


async def test_feedback_is_off_by_default() -> None:
    """The message names the setting."""
    service = make_service()
    await answered(service, "a")
    with pytest.raises(UnknownRequest, match="feedback_requests"):
        await service.feedback.report(("a", ""), RIGHT)


async def test_the_questions_of_a_list_differ_by_their_ids() -> None:
    """They share the id of their request; where they share their own, too, nobody knows which is meant."""
    service = make_service(feedback_requests=10)
    for own_id in ("1", "2", "", ""):
        await answered(service, "list", own_id)
    assert (await service.feedback.report(("list", "2"), RIGHT)).f1 == 1
    with pytest.raises(InvalidField, match="several answers"):
        await service.feedback.report(("list", ""), RIGHT)


async def test_another_key_cannot_report_on_an_answer() -> None:
    """Ids may be guessed."""
    service = make_service(feedback_requests=10)
    metrics, key = Metrics(), ApiKey(sha256="0" * 64)
    token = access.CALLER.set(Caller("mine", key, None, metrics))
    await answered(service, "a")
    access.CALLER.set(Caller("theirs", key, None, metrics))
    with pytest.raises(UnknownRequest):
        await service.feedback.report(("a", ""), RIGHT)
    access.CALLER.reset(token)


async def test_a_kept_answer_is_an_answer() -> None:
    """The response cache gives it under another request's id."""
    service = make_service(feedback_requests=10, cache_bytes=1_000_000)
    await answered(service, "a")
    await answered(service, "b")
    assert (await service.feedback.report(("b", ""), RIGHT)).plan == "large"


async def test_another_model_of_the_same_name_begins_anew() -> None:
    """What is known of one model says nothing of the next."""
    service = make_service(feedback_requests=10)
    await answered(service, "a")
    await service.feedback.report(("a", ""), RIGHT)
    other = small_and_large()

    variants = tuple(replace(v, sha256="1" * 64) for v in other.variants)
    service.serving = serving_set(replace(other, variants=variants))
    assert service.feedback.live(service.serving) == {}


async def test_two_catalogs_with_a_plan_of_one_name_are_shown_apart() -> None:
    """A candidate may bring another model of the same name; its mistakes are not the current one's."""
    service = make_service(feedback_requests=100)
    running = service.rollout.running = half_to_another_large()
    known = Counter[str]()
    for n in range(80):
        logs.request_id.set(f"r{n}")
        given = await service.answer(Question(QUESTION, CONTEXT), SloRequest(), now_ms())
        await service.feedback.report(
            (f"r{n}", ""), Truth(right=given.served_by is SetName.CURRENT)
        )
        known[given.served_by or ""] += 1
    assert min(known[name] for name in SetName) >= FEWEST
    for catalog, f1 in ((SetName.CURRENT, 1.0), (SetName.CANDIDATE, 0.0)):
        labels = {"catalog": catalog, "plan": "large"}
        assert value(service, "bertier_live_known_answers", **labels) == known[catalog]
        assert value(service, "bertier_live_f1", **labels) == f1
    service.rollout.running, service.serving = None, running.serving  # promoted
    labels = {"catalog": "current", "plan": "large"}
    assert value(service, "bertier_live_known_answers", **labels) == known[SetName.CANDIDATE]
    assert value(service, "bertier_live_f1", catalog="candidate", plan="large") is None


def half_to_another_large() -> Running:
    """Return a candidate whose plans have the names of the current ones, but not their models."""
    catalog = small_and_large()
    variants = tuple(replace(v, sha256="1" * 64) for v in catalog.variants)
    other = serving_set(replace(catalog, variants=variants))
    tests = RolloutTests(Chances())
    return Running(
        "ab" * 32, other, 0.5, shadow=False, tests=tests, sums_ms=dict.fromkeys(SetName, 0.0)
    )


async def test_an_agreement_with_the_largest_variant_predicts_the_outcome() -> None:
    """Both say something of whether an answer is right; texts are not needed for it."""
    service = make_service(feedback_requests=10)
    await answered(service, "a")
    (kept,) = service.feedback._kept.values()
    before = kept.prediction
    service.feedback.compared((None, "a", ""), Comparison.DIFFERENT)
    assert kept.prediction < before
    service.feedback.compared((None, "unknown", ""), Comparison.DIFFERENT)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"request_id": "a"}, "send one of the two"),
        ({"request_id": "a", "answers": [], "right": True}, "send one of the two"),
        ({"request_id": "a", "answers": [" "]}, "answers.0"),
        ({"request_id": "a", "answers": ["x" * 3000]}, "answers.0"),
        ({"request_id": "a", "answers": "x"}, "answers"),
        ({"request_id": "a", "rigth": True}, "rigth"),
    ],
)
async def test_wrong_feedback_is_refused_by_field(body: dict[str, Any], problem: str) -> None:
    """A mistake must not count as a wrong answer."""
    service = make_service(feedback_requests=10)
    response = await post(service, "/v1/feedback", json=body)
    assert response.status_code == 422
    assert problem in response.json()["detail"]


async def test_feedback_over_http() -> None:
    """The id is the response's; what is known is in /v1/variants."""
    service = make_service(feedback_requests=100)
    async with client(service) as http:
        bodies = []
        for n in range(25):
            given = await http.post(
                "/v1/answer", json=QUESTION_BODY, headers={"X-Request-Id": f"r{n}"}
            )
            bodies.append({"request_id": given.headers["x-request-id"], "right": n > 4})
        for body in bodies[:-1]:
            await http.post("/v1/feedback", json=body)
        reply = await http.post("/v1/feedback", json=bodies[-1])
        assert reply.status_code == 200
        assert reply.json() == {"plan": "large", "variant": "large", "f1": 1.0, "exact": 1.0}
        unknown = await http.post("/v1/feedback", json={"request_id": "?", "right": True})
        assert (unknown.status_code, unknown.json()["type"]) == (
            404,
            "urn:bertier:problem:unknown-request",
        )
        again = await http.post("/v1/feedback", json={"request_id": "r24", "right": False})
        assert again.status_code == 409
        plans = (await http.get("/v1/variants")).json()["plans"]
    live = {plan["name"]: plan["live"] for plan in plans}
    assert live["small"] is None
    assert live["large"]["known"] == 25
    assert live["large"]["f1"]["low"] < 0.8 < live["large"]["f1"]["high"]
    shown = value(service, "bertier_live_f1", catalog="current", plan="large")
    assert shown == pytest.approx(0.8)


async def test_a_file_of_feedback_is_a_question_set(tmp_path: Path) -> None:
    """`bertier-optimize certify --data` reads it; what it could not read is not written."""
    file = tmp_path / "feedback.jsonl"
    service = make_service(feedback_requests=10, feedback_file=file)
    text = await answered(service, "a")
    for name in "bcde":
        assert await answered(service, name) == text
    await service.feedback.report(("a", ""), Truth(("Normandy", "not in the text")))
    await service.feedback.report(("b", ""), Truth(()))
    await service.feedback.report(("c", ""), RIGHT)
    await service.feedback.report(("d", ""), Truth(right=False))  # the right one is not known
    await service.feedback.report(("e", ""), Truth(("not in the text",)))
    found = question_files.load(file)
    assert [e.answers for e in found] == [("Normandy",), (), (text,)]
    assert {(e.question, e.context) for e in found} == {(QUESTION, CONTEXT)}
    assert json.loads(file.read_text().splitlines()[0])["request_id"] == "a"


async def test_half_a_line_spoils_no_other_and_the_file_is_its_owner_s(tmp_path: Path) -> None:
    """A full disk ends a line anywhere, and what follows must still be a question set of its own lines."""
    file = tmp_path / "feedback.jsonl"
    service = make_service(feedback_requests=10, feedback_file=file)
    for name in "ab":
        await answered(service, name)
    await service.feedback.report(("a", ""), RIGHT)
    with file.open("ab") as opened:
        opened.write(file.read_bytes()[:40])
    await service.feedback.report(("b", ""), RIGHT)
    assert [json.loads(line)["request_id"] for line in file.read_text().splitlines()] == ["a", "b"]
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_full_disk_leaves_no_part_of_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The real error of a real write: the file may not grow past its limit."""
    file = tmp_path / "feedback.jsonl"
    service = make_service(feedback_requests=10, feedback_file=file)
    for name in "ab":
        await answered(service, name)
    await service.feedback.report(("a", ""), RIGHT)
    whole = file.read_bytes()
    with files_no_longer_than(len(whole) + 20):
        await service.feedback.report(("b", ""), RIGHT)
    assert file.read_bytes() == whole
    assert "a question is lost" in caplog.text


@contextmanager
def files_no_longer_than(n_bytes: int) -> Iterator[None]:
    """A write beyond it fails with EFBIG; part of it is written before, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_file_without_memory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would stay empty."""
    monkeypatch.setenv("BERTIER_FEEDBACK_FILE", str(tmp_path / "f.jsonl"))
    with pytest.raises(SettingsError, match="feedback_requests"):
        read()
