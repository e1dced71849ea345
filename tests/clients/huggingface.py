"""huggingface_hub's InferenceClient, sync and async: an answer, a list, no answer, what is refused."""

from __future__ import annotations

import asyncio

from huggingface_hub import AsyncInferenceClient, InferenceClient, QuestionAnsweringOutputElement
from huggingface_hub.errors import HfHubHTTPError

from tests.clients.asked import (
    CONTEXT,
    MOST_ACCURATE,
    NO_ANSWER,
    QUESTION,
    SLO,
    addresses,
    check_answer,
    say,
)

Element = QuestionAnsweringOutputElement


def one(found: Element | list[Element]) -> Element:
    """Return the answer of a reply that is no list, as it is without `top_k`."""
    assert not isinstance(found, list)
    return found


async def in_a_loop(url: str) -> None:
    client = AsyncInferenceClient(model=url, headers=SLO)
    answer = one(await client.question_answering(question=QUESTION, context=CONTEXT))
    say("async", answer)
    check_answer(answer.answer, answer.start, answer.end)


def main() -> None:
    url, _ = addresses()
    for path in ("/", "/models/qa"):
        client = InferenceClient(model=f"{url}{path}", headers=SLO)
        answer = one(client.question_answering(question=QUESTION, context=CONTEXT))
        say(path, answer)
        check_answer(answer.answer, answer.start, answer.end)
    client = InferenceClient(model=url, headers=SLO)
    several = client.question_answering(question=QUESTION, context=CONTEXT, top_k=3)
    assert isinstance(several, list)
    say("top_k=3", [each.answer for each in several])
    assert len(several) == 3
    careful = InferenceClient(model=url, headers=MOST_ACCURATE)
    none = one(
        careful.question_answering(
            question=NO_ANSWER, context=CONTEXT, handle_impossible_answer=True
        )
    )
    say("no answer", none)
    assert (none.answer, none.start, none.end) == ("", 0, 0)
    try:
        client.question_answering(question=QUESTION, context=CONTEXT, doc_stride=64)
    except HfHubHTTPError as refused:
        say("doc_stride=64", str(refused).splitlines()[-1])
    else:
        raise AssertionError("it was not refused")
    asyncio.run(in_a_loop(url))


main()
