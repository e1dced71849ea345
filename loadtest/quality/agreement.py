"""Compares answers over every protocol, and at several concurrencies, with the offline evaluation."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.qa import codec
from loadtest.clients import (
    GrpcAnswerClient,
    HttpAnswerClient,
    OipAnswerClient,
    VariantAnswer,
    ask_all,
)
from loadtest.stack import Stack
from optimizer.data import evaluate
from optimizer.data.question_sets import Example


class AnswerClient(Protocol):
    async def ask(self, example: Example, variant: str) -> VariantAnswer: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many answers over one protocol differ from the offline evaluation."""

    variant: str
    way: str
    questions: int
    different: int
    first_difference: str


def offline(
    repository: Path, catalog: Catalog, name: str, examples: list[Example]
) -> list[VariantAnswer]:
    """Return the answers of the optimizer's own evaluation: in-process, one at a time."""
    variant = catalog.variant(name)
    model = store.model_path(repository, variant)
    tokenizer = repository / store.TOKENIZER
    readings = evaluate.read_all(model, tokenizer, examples, variant.precision)
    found = [codec.answer_of(reading, variant.decoding) for reading in readings]
    return [VariantAnswer(a.text, a.start, a.end, name) for a in found]


async def agreement(stack: Stack, repository: Path, examples: list[Example]) -> list[Comparison]:
    """Compare HTTP, gRPC and OIP with the offline evaluation, for every variant."""
    clients: dict[str, AnswerClient] = {
        "HTTP": HttpAnswerClient(stack.http_url),
        "gRPC": GrpcAnswerClient(stack.grpc_target),
        "OIP (tritonclient)": OipAnswerClient(stack.grpc_target),
    }
    ways = {name: _through(client, 4) for name, client in clients.items()}
    found = await _compare(repository, examples, ways)
    for client in clients.values():
        await client.close()
    return found


async def invariance(stack: Stack, repository: Path, examples: list[Example]) -> list[Comparison]:
    """Compare concurrency 1 and 16 with the offline evaluation, for every variant."""
    client = HttpAnswerClient(stack.http_url)
    ways = {f"concurrency {n}": _through(client, n) for n in (1, 16)}
    found = await _compare(repository, examples, ways)
    await client.close()
    return found


Way = Callable[[Sequence[Example], str], Coroutine[Any, Any, list[VariantAnswer]]]


def _through(client: AnswerClient, concurrency: int) -> Way:
    async def ask(examples: Sequence[Example], variant: str) -> list[VariantAnswer]:
        return await ask_all(examples, lambda e: client.ask(e, variant), concurrency)

    return ask


async def _compare(
    repository: Path, examples: list[Example], ways: dict[str, Way]
) -> list[Comparison]:
    catalog = store.read_questions(repository)
    found = []
    for variant in catalog.variants:
        wanted = offline(repository, catalog, variant.name, examples)
        for way, ask in ways.items():
            answers = await ask(examples, variant.name)
            found.append(_comparison(variant.name, way, examples, wanted, answers))
    return found


def _comparison(
    variant: str,
    way: str,
    examples: list[Example],
    wanted: list[VariantAnswer],
    answers: list[VariantAnswer],
) -> Comparison:
    pairs = zip(examples, wanted, answers, strict=True)
    different = [f"{e.id}: {w} / {t}" for e, w, t in pairs if w != t]
    return Comparison(variant, way, len(examples), len(different), (different or [""])[0])
