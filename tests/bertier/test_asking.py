"""Passages, thresholds, units and shared contexts through the client, over either protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bertier import ApiError, Ask, AsyncClient, InvalidRequest, Passage
from tests import live
from tests.bertier.test_client import both, in_thread
from tests.fakes import CONTEXT, QUESTION
from tests.live import Running

ROLLO = "🙂 Rollo was a Viking. He ruled."
TEXTS: list[str | Passage] = [CONTEXT, Passage(ROLLO, id="p")]


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with live.gateway(cache_bytes=1 << 20) as running:
        yield running


@both
async def test_passages_come_back_by_place_and_id(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """The caller finds the passage of an answer without searching."""
    backwards = [TEXTS[1], TEXTS[0]]
    answer = await in_thread(
        url_of(gateway),
        lambda c: c.answer(QUESTION, backwards, top_k=2, sentence=True, offset_unit="utf-8"),
    )
    assert (answer.passage.index, answer.passage.id) == (0, "p")
    assert answer.sentence is not None
    text = ROLLO.encode()
    assert text[answer.start : answer.end].decode() == answer.text
    assert text[answer.sentence.start : answer.sentence.end].decode() == answer.sentence.text
    assert answer.alternatives[0].passage == answer.passage
    assert answer.cost.largest_variant == "large"
    assert answer.slo.total_ms > 0


@both
async def test_a_threshold_of_ones_own_travels(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """The same options over either protocol."""
    gateway.backend.answerable = False
    url = url_of(gateway)
    assert not await in_thread(url, lambda c: c.answer(QUESTION, CONTEXT))
    assert await in_thread(
        url, lambda c: c.answer(QUESTION, CONTEXT, max_no_answer_probability=1.0)
    )
    with pytest.raises(InvalidRequest, match="min_score"):
        await in_thread(url, lambda c: c.answer(QUESTION, CONTEXT, min_score=3))
    with pytest.raises(InvalidRequest, match="offset_unit"):
        await in_thread(url, lambda c: c.answer(QUESTION, CONTEXT, offset_unit="bytes"))
    with pytest.raises(InvalidRequest, match="max_answer_tokens"):
        await in_thread(url, lambda c: c.answer(QUESTION, CONTEXT, max_answer_tokens=31))


@both
async def test_many_questions_about_one_context(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """In order, more of them than one request carries; a failure is a value in its place."""
    asks: list[str | Ask] = [f"Who {i}?" for i in range(70)]
    asks[3] = Ask("", id="3")
    asks[4] = Ask(QUESTION, id="4", slo={"variant": "small"})
    found = await in_thread(
        url_of(gateway), lambda c: list(c.answers_about(TEXTS, asks, latency_ms=30_000))
    )
    assert len(found) == 70
    assert isinstance(found[3], ApiError)
    assert (found[4].id, found[4].variant, found[4].passage.index) == ("4", "small", 0)
    async with AsyncClient(url_of(gateway)) as client:
        again = [each async for each in client.answers_about(TEXTS, asks[4:6])]
    assert [each.text for each in again if not isinstance(each, ApiError)] == [
        each.text for each in found[4:6]
    ]


@both
async def test_a_shared_context_that_is_wrong_fails_the_whole(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """No question of it could be answered."""
    with pytest.raises(InvalidRequest, match="context"):
        await in_thread(url_of(gateway), lambda c: list(c.answers_about([], ["Who?"])))
    many = ["x"] * 101
    with pytest.raises(InvalidRequest, match="contexts"):
        await in_thread(url_of(gateway), lambda c: list(c.answers_about(many, ["Who?"])))


@both
async def test_a_cached_answer_differs_from_a_new_one(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """By its age; a client may do without kept answers."""
    url = url_of(gateway)

    def ask(client: Any) -> Any:
        return client.answer(QUESTION, CONTEXT, latency_ms=30_000)

    first, again = [await in_thread(url, ask) for _ in range(2)]
    assert (first.age_ms, again.age_ms >= 0, again.cost.compute_ms) == (None, True, 0)
    async with AsyncClient(url, cache_control="no-store") as client:
        assert (await client.answer(QUESTION, CONTEXT, latency_ms=30_000)).age_ms is None


async def test_a_question_with_texts_of_its_own_is_refused(gateway: Running) -> None:
    """Before anything is sent: which context is meant?"""
    url = f"http://{gateway.http_url}"
    with pytest.raises(TypeError, match="item 1"):
        await in_thread(
            url, lambda c: list(c.answers_about(CONTEXT, ["Who?", Ask("Who?", CONTEXT)]))
        )
    with pytest.raises(TypeError, match="has no context"):
        await in_thread(url, lambda c: list(c.answers([Ask("Who?")])))
