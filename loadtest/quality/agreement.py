"""Are answers the same through every door, at every concurrency, and as evaluated offline?"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.qa import codec
from loadtest.clients import GrpcDoor, HttpDoor, OipDoor, Told, ask_all
from loadtest.stack import Stack
from optimizer.data import evaluate
from optimizer.data.question_sets import Example


class Door(Protocol):
    async def ask(self, example: Example, variant: str) -> Told: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """How often a way of asking gave another answer than the offline evaluation."""

    variant: str
    way: str
    questions: int
    different: int
    first_difference: str


def offline(repository: Path, catalog: Catalog, name: str, examples: list[Example]) -> list[Told]:
    """Return the answers of the optimizer's own evaluation: in-process, one at a time."""
    variant = catalog.variant(name)
    model = store.model_path(repository, variant)
    tokenizer = repository / store.TOKENIZER
    readings = evaluate.read_all(model, tokenizer, examples, variant.precision)
    found = [codec.answer_of(reading, variant.decoding) for reading in readings]
    return [Told(a.text, a.start, a.end, name) for a in found]


async def agreement(stack: Stack, repository: Path, examples: list[Example]) -> list[Comparison]:
    """Compare HTTP, gRPC and OIP with the offline evaluation, for every variant."""
    doors: dict[str, Door] = {
        "HTTP": HttpDoor(stack.http_url),
        "gRPC": GrpcDoor(stack.grpc_target),
        "OIP (tritonclient)": OipDoor(stack.grpc_target),
    }
    ways = {name: _through(door, 4) for name, door in doors.items()}
    found = await _compare(repository, examples, ways)
    for door in doors.values():
        await door.close()
    return found


async def invariance(stack: Stack, repository: Path, examples: list[Example]) -> list[Comparison]:
    """Compare concurrency 1 and 16 with the offline evaluation, for every variant."""
    door = HttpDoor(stack.http_url)
    ways = {f"concurrency {n}": _through(door, n) for n in (1, 16)}
    found = await _compare(repository, examples, ways)
    await door.close()
    return found


Way = Callable[[Sequence[Example], str], Coroutine[Any, Any, list[Told]]]


def _through(door: Door, concurrency: int) -> Way:
    async def ask(examples: Sequence[Example], variant: str) -> list[Told]:
        return await ask_all(examples, lambda e: door.ask(e, variant), concurrency)

    return ask


async def _compare(
    repository: Path, examples: list[Example], ways: dict[str, Way]
) -> list[Comparison]:
    catalog = store.read(repository)
    found = []
    for variant in catalog.variants:
        wanted = offline(repository, catalog, variant.name, examples)
        for way, ask in ways.items():
            told = await ask(examples, variant.name)
            found.append(_comparison(variant.name, way, examples, wanted, told))
    return found


def _comparison(
    variant: str, way: str, examples: list[Example], wanted: list[Told], told: list[Told]
) -> Comparison:
    pairs = zip(examples, wanted, told, strict=True)
    different = [f"{e.id}: {w} / {t}" for e, w, t in pairs if w != t]
    return Comparison(variant, way, len(examples), len(different), (different or [""])[0])
