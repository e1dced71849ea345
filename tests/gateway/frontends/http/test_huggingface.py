"""The real client of huggingface_hub against a live gateway; only the model server is a fake."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from gateway.frontends.http import huggingface
from tests import live
from tests.fakes import CONTEXT, QUESTION
from tests.live import Running

TOKEN = "hf_nobody"  # else the client looks for the one of whoever runs the tests
STRICT = {"SLO-Policy": "strict", "SLO-Min-F1": "0.99"}


async def asked(
    running: Running, path: str = "", headers: dict[str, str] | None = None, **parameters: Any
) -> Any:
    """Return what the stock client makes of the answer."""
    url = f"http://{running.http_url}{path}"
    client = InferenceClient(model=url, headers=headers, token=TOKEN)
    given = {"question": QUESTION, "context": CONTEXT, **parameters}
    return await asyncio.to_thread(lambda: client.question_answering(**given))


@pytest.mark.parametrize("path", ["", "/models/qa"])
async def test_the_stock_client_gets_an_answer(path: str) -> None:
    """Code written for the pipeline or an inference endpoint needs another URL and nothing else."""
    async with live.gateway() as running:
        answer = await asked(running, path)
    assert (answer.answer, answer.start, answer.end) == ("The", 0, 3)
    assert 0 < answer.score < 1


async def test_more_than_one_answer_is_a_list_of_distinct_ones() -> None:
    """Widened to whole words, two spans may become one."""
    async with live.gateway() as running:
        answers = await asked(running, top_k=5)
    assert len(answers) == 5
    assert len({(each.start, each.end) for each in answers}) == 5
    assert all(CONTEXT[each.start : each.end] == each.answer for each in answers)
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)


async def test_no_answer_is_one_only_where_it_is_handled() -> None:
    """The pipeline gives its best span unless `handle_impossible_answer` is set."""
    async with live.gateway() as running:
        running.backend.answerable = False
        always = await asked(running)
        handled = await asked(running, handle_impossible_answer=True)
        some = await asked(running, handle_impossible_answer=True, top_k=3)
    assert always.answer == "The"
    assert (handled.answer, handled.start, handled.end) == ("", 0, 0)
    assert handled.score > 0.99 > always.score
    assert [each.answer for each in some][:2] == ["", "The"]


async def test_an_answer_has_no_more_tokens_than_asked_for() -> None:
    """Among spans of two words are answers that a longer one would hide."""
    async with live.gateway() as running:
        short = await asked(running, top_k=20, max_answer_len=2)
        longer = await asked(running, top_k=20, max_answer_len=30)
    assert max(len(each.answer.split()) for each in short) == 2
    assert max(len(each.answer.split()) for each in longer) > 2


async def test_the_slo_travels_in_headers() -> None:
    """A client of others' making can still say what it needs, and is refused like any."""
    async with live.gateway() as running:
        await asked(running, headers={"SLO-Variant": "large"})
        with pytest.raises(HfHubHTTPError) as failed:
            await asked(running, headers=STRICT)
        body = {"inputs": {"question": QUESTION, "context": CONTEXT}}
        async with httpx.AsyncClient(base_url=f"http://{running.http_url}") as http:
            response = await http.post("/", json=body)
    assert running.backend.asked[0] == "large"
    assert failed.value.response.status_code == 422
    assert "no plan meets" in str(failed.value)
    assert {"slo-plan", "slo-met", "server-timing"} <= response.headers.keys()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"doc_stride": 64}, "parameters.doc_stride: 64 is not served; leave it out, or send 128"),
        ({"max_seq_len": 512}, "leave it out, or send 384"),
        ({"max_question_len": 64}, "leave it out, or send 128"),
        ({"max_answer_len": 31}, "parameters.max_answer_len"),
        ({"top_k": 21}, "allowed: 1 to 20"),
    ],
)
async def test_what_is_not_served_is_refused_with_a_reason(
    parameters: dict[str, int], says: str
) -> None:
    """Ignored in silence, it would give other answers than those asked for."""
    async with live.gateway() as running:
        with pytest.raises(HfHubHTTPError) as failed:
            await asked(running, "", None, **parameters)
    assert failed.value.response.status_code == 422
    assert says in failed.value.response.json()["error"]


async def test_what_is_served_anyway_may_be_said() -> None:
    """These are the pipeline's own defaults, or the only ones that there are."""
    async with live.gateway() as running:
        answer = await asked(running, doc_stride=128, max_seq_len=384, align_to_words=False)
    assert answer.answer == "The"


@pytest.mark.parametrize(
    ("context", "part", "whole"),
    [
        ("the Normans came", "Norman", "Normans"),
        ("the 1990s.", "99", "1990s"),
        ("naïve", "a", "naïve"),
        ("ab-cd", "c", "cd"),
        ("东京是首都", "京", "京"),
        ("came at noon", "at", "at"),
        ("50 % of", "%", "%"),
    ],
)
def test_an_answer_is_widened_to_whole_words(context: str, part: str, whole: str) -> None:
    """Where no spaces part words, a whole sentence would be one."""
    start = context.index(part)
    place = huggingface._Place(start, start + len(part), 1.0)
    wide = huggingface._in_whole_words(context, place)
    assert context[wide.start : wide.end] == whole
