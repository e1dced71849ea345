"""Answers of a running gateway to a question set, or labels of texts, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import httpx2

from gateway.errors import BertierError
from optimizer.data.labelled_texts import LabelledText
from optimizer.data.question_sets import Example
from optimizer.study.progress import Progress

TIMEOUT_S = 60.0

Asked = Example | LabelledText


class GatewayError(BertierError):
    """The gateway gave no answer; the message says what it said instead."""


def labels_of(url: str, task: str, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the labels of a task in the order of its models' outputs. Raises: GatewayError."""
    try:
        response = httpx2.get(
            f"{url.rstrip('/')}/v1/variants", headers=dict(headers), timeout=TIMEOUT_S
        )
        there = {t["name"]: tuple(t["labels"]) for t in response.json().get("tasks", ())}
    except (httpx2.HTTPError, ValueError) as exc:
        raise GatewayError(
            f"{url}: {type(exc).__name__}: is a gateway running there? ('make run')"
        ) from exc
    if task not in there:
        served = ", ".join(there) or "no classification"
        raise GatewayError(f"{url}: does not serve {task}, but {served}; name another --task")
    return there[task]


async def ask_all(
    url: str,
    examples: Sequence[Asked],
    headers: Mapping[str, str],
    concurrency: int,
    task: str | None = None,
) -> list[str]:
    """Return the gateway's answer to every question, or its label of every text, in order. Raises: GatewayError."""
    progress = Progress(f"evaluate {url}", len(examples))
    gate = asyncio.Semaphore(concurrency)
    limits = httpx2.Limits(max_connections=concurrency)
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:

        async def ask(example: Asked) -> str:
            async with gate:
                answer = await _ask(client, example, headers, task)
            progress.step()
            return answer

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(example)) for example in examples]
    return [task.result() for task in tasks]


async def _ask(
    client: httpx2.AsyncClient, example: Asked, headers: Mapping[str, str], task: str | None
) -> str:
    if isinstance(example, Example):
        body = {"question": example.question, "context": example.context, "id": example.id}
        path, field = "/v1/answer", "answer"
    else:
        texts = {"text": example.text, "text_pair": example.text_pair, "task": task}
        body = {k: v for k, v in (texts | {"id": example.id}).items() if v is not None}
        path, field = "/v1/classify", "label"
    try:
        response = await client.post(path, json=body, headers=dict(headers))
    except httpx2.HTTPError as exc:
        raise GatewayError(
            f"{client.base_url}: {type(exc).__name__}: is a gateway running there? ('make run')"
        ) from exc
    if response.status_code != httpx2.codes.OK:
        raise GatewayError(
            f"{client.base_url}: status {response.status_code} to question {example.id}:"
            f" {response.text[:300]}"
        )
    return str(response.json()[field])
