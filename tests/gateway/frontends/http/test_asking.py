"""What else may be said of a question over HTTP: passages, thresholds, units, sentences, kept answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.frontends.schemas import SharedQuestionsBody, check
from gateway.request.service import AnswerService
from gateway.settings import MAX_PASSAGES, Settings
from tests.asgi import QUESTION_BODY, client, make_service, outcome, post
from tests.fakes import CONTEXT, QUESTION, WordBackend
from tests.watched import WatchedBackend

SAID = {"SLO-Min-F1": "0.6", "SLO-Latency-Ms": "5000"}
PASSAGES = ["London is large. 🙂", {"context": "🙂 A city. It is Paris. Yes.", "id": "p2"}, "Rome."]
PASSAGES_BODY = {"question": "Which city?", "contexts": PASSAGES}


def made(word: str = "paris", **settings: Any) -> AnswerService:
    return make_service(WordBackend(word), **settings)


async def answer(service: AnswerService, **body: Any) -> dict[str, Any]:
    response = await post(service, json=body, headers=SAID)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_one_answer_comes_from_many_passages() -> None:
    """It names its passage by place and id; offsets count in that passage."""
    body = await answer(made(), **PASSAGES_BODY, top_k=2, sentence=True)
    text = "🙂 A city. It is Paris. Yes."
    assert body["answer"] == "Paris" == text[body["start"] : body["end"]]
    assert body["passage"] == {"index": 1, "id": "p2"}
    assert body["sentence"] == {"text": "It is Paris.", "start": 10, "end": 22}
    assert body["alternatives"][0]["passage"] == {"index": 1, "id": "p2"}
    assert text[body["sentence"]["start"] : body["sentence"]["end"]] == "It is Paris."


@pytest.mark.parametrize(("unit", "start"), [("code-points", 16), ("utf-16", 17), ("utf-8", 19)])
async def test_offsets_count_in_the_callers_unit(unit: str, start: int) -> None:
    """A page in JavaScript highlights without counting anew."""
    body = await answer(made(), **PASSAGES_BODY, offset_unit=unit)
    assert (body["start"], body["end"]) == (start, start + 5)


async def test_no_passage_may_hold_the_answer() -> None:
    """One decision for all of them."""
    body = await answer(made("berlin"), **PASSAGES_BODY, sentence=True)
    assert (body["answer"], body["start"], body["passage"], body["sentence"]) == (
        *("", None),
        *(None, None),
    )


async def test_what_was_not_asked_for_is_not_there() -> None:
    """The answers of before are the answers of now."""
    body = await answer(make_service(), **QUESTION_BODY)
    assert not {"passage", "sentence", "age_ms", "explain"} & set(body)


async def test_the_body_says_what_it_cost_and_took() -> None:
    """SDKs drop headers."""
    response = await post(
        make_service(), json=QUESTION_BODY, headers={"SLO-Min-F1": "0.4", "SLO-Latency-Ms": "5000"}
    )
    body = response.json()
    assert body["cost"] == {
        "compute_ms": 5.0,
        "largest_variant": "large",
        "largest_compute_ms": 20.0,
        "saved_ms": 15.0,
    }
    assert body["slo"]["met"] == "true"
    assert body["slo"]["total_ms"] >= 0


@pytest.mark.parametrize(
    ("own", "text"), [({}, ""), ({"max_no_answer_probability": 1}, "The"), ({"min_score": 1}, "")]
)
async def test_the_caller_sets_a_threshold(own: dict[str, float], text: str) -> None:
    """In place of the variant's."""
    backend = WatchedBackend()
    backend.answerable = False
    assert (await answer(make_service(backend), **QUESTION_BODY, **own))["answer"] == text


async def test_no_answer_is_longer_than_asked() -> None:
    """max_answer_tokens bounds every span."""
    body = await answer(make_service(), **QUESTION_BODY, top_k=20, max_answer_tokens=1)
    assert all(len(each["answer"].split()) == 1 for each in body["alternatives"])


@pytest.mark.parametrize(
    ("body", "type_", "field"),
    [
        ({}, "invalid-field", "context"),
        ({"context": CONTEXT, "contexts": [CONTEXT]}, "invalid-field", "contexts"),
        ({"contexts": []}, "invalid-field", "contexts"),
        ({"contexts": "x"}, "invalid-field", "contexts"),
        ({"contexts": ["x"] * 4}, "too-many-items", "contexts"),
        ({"contexts": ["x", 7]}, "invalid-field", "contexts.1"),
        ({"contexts": [{"context": "x", "idd": "y"}]}, "invalid-field", "contexts.0"),
        ({"contexts": ["x", " "]}, "empty-text", "contexts.1"),
        ({"contexts": ["x" * 60, "y" * 60]}, "text-too-long", "contexts"),
        ({"context": CONTEXT, "min_score": 1.1}, "invalid-field", "min_score"),
        ({"context": CONTEXT, "min_score": -0.1}, "invalid-field", "min_score"),
        (
            {"context": CONTEXT, "max_no_answer_probability": 2},
            *("invalid-field", "max_no_answer_probability"),
        ),
        ({"context": CONTEXT, "max_answer_tokens": 31}, "invalid-field", "max_answer_tokens"),
        ({"context": CONTEXT, "offset_unit": "bytes"}, "invalid-field", "offset_unit"),
        ({"context": CONTEXT, "sentence": "yes"}, "invalid-field", "sentence"),
    ],
)
async def test_what_cannot_be_used_is_named(body: dict[str, Any], type_: str, field: str) -> None:
    """A problem document that says which field, and what is allowed."""
    service = make_service(max_passages=3, max_context_chars=100)
    response = await post(service, json={"question": QUESTION, **body})
    problem = response.json()
    assert response.status_code in (413, 422)
    assert problem["type"] == f"urn:bertier:problem:{type_}"
    assert problem["detail"].startswith(field)


async def test_many_questions_share_a_context() -> None:
    """It is sent and tokenized once; each question is an item with its own options and failures."""
    service = made()
    questions = [
        "Which city?",
        {"question": "Which one?", "id": "b", "slo": {"variant": "small"}},
        {"question": ""},
        {"question": "Where?", "id": "d", "context": "here", "slo": {"class": "batch"}},
    ]
    body = {"contexts": PASSAGES, "questions": questions}
    response = await post(service, "/v1/answers", json=body, headers=SAID)
    first, second, third, fourth = (json.loads(line) for line in response.text.splitlines())
    assert (first["answer"], first["passage"]["id"]) == ("Paris", "p2")
    assert (second["id"], second["variant"]) == ("b", "small")
    assert third["error"]["type"] == "urn:bertier:problem:empty-text"
    assert fourth["error"]["detail"].startswith("questions.3.context")
    assert fourth["id"] == "d"
    assert outcome(service, "batch", "invalid-field") == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"context": CONTEXT, "questions": []}, "questions"),
        ({"questions": ["Who?"]}, "context"),
        ({"context": CONTEXT}, "questions"),
        ({"contexts": [], "questions": ["Who?"]}, "contexts"),
        ({"context": CONTEXT, "questions": [7]}, "questions.0"),
        ({"context": CONTEXT, "questions": {"0": "Who?"}}, "questions"),
        ({"context": CONTEXT, "questions": ["Who?"], "slo": {}}, "slo"),
    ],
)
async def test_a_shared_context_that_is_wrong_fails_the_whole(
    body: dict[str, Any], field: str
) -> None:
    """No question of it could be answered."""
    response = await post(make_service(), "/v1/answers", json=body)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(field)


async def test_a_kept_answer_says_its_age() -> None:
    """In the header that HTTP has for it, and in the body; `no-store` gets a new one."""
    service = make_service(cache_bytes=1 << 20)
    async with client(service) as http:
        first = await http.post("/v1/answer", json=QUESTION_BODY, headers=SAID)
        again = await http.post("/v1/answer", json=QUESTION_BODY | {"id": "x"}, headers=SAID)
        anew = await http.post(
            "/v1/answer", json=QUESTION_BODY, headers=SAID | {"Cache-Control": "no-store"}
        )
    assert "age" not in first.headers
    assert (again.headers["age"], again.json()["id"]) == ("0", "x")
    assert again.json()["age_ms"] >= 0
    assert again.json()["cost"]["compute_ms"] == 0
    assert "age" not in anew.headers
    registry = service.metrics.registry
    saved = [
        registry.get_sample_value(f"bertier_{name}_seconds_total", {"slo_class": "standard"})
        for name in ("compute", "largest_compute")
    ]
    assert saved == pytest.approx([0.04, 0.06])  # two asked the largest, one was kept


async def test_no_more_passages_are_read_than_any_setting_allows() -> None:
    """To check the 700,000 empty texts that fit into a body held all other requests up for a second."""
    passages = ["x"] * (MAX_PASSAGES + 1)
    response = await post(make_service(), json={"question": QUESTION, "contexts": passages})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(
        f"contexts: List should have at most {MAX_PASSAGES}"
    )


def test_shared_questions_are_not_read_before_their_turn() -> None:
    """To check the 11 million that fit into a body held all other requests up for 15 s."""
    questions = ["Who?", {"question": "Where?", "top_k": "x"}]
    body = check(SharedQuestionsBody, {"context": CONTEXT, "questions": questions})
    assert body.questions is questions
    assert next(iter(body.items(Settings()))) == {"question": "Who?", "context": CONTEXT}
