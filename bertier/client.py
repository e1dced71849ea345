"""`Client` and `AsyncClient`: one gateway, asked over HTTP or gRPC as its URL says.

What both share is pure and in other modules: SLO arguments, questions, answers, errors, retries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Final, TypeVar, Unpack
from urllib.parse import urlsplit

from bertier import questions
from bertier.answers import Answer, Classification, PlanReport, Scored
from bertier.errors import ApiError
from bertier.over_grpc import AsyncGrpcTransport, GrpcTransport
from bertier.over_http import AsyncHttpTransport, HttpTransport
from bertier.questions import AnswerArguments, Ask, Batch, Operation, Texts
from bertier.retrying import Attempts, Retries
from bertier.security import Security
from bertier.slo import SloArguments, headers_of

T = TypeVar("T")
SCHEMES: Final = ("http", "https", "grpc", "grpcs")
BATCH: Final = 64  # questions of one request of `answers`
DEFAULT_URL: Final = "http://127.0.0.1:8080"
OPEN: Final = Security()
PATIENT: Final = Retries()


class Client:
    """Asks a gateway; safe to share between threads. Close it, or use it in a `with`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        security: Security = OPEN,
        retries: Retries = PATIENT,
        timeout_s: float = 60.0,
        cache_control: str | None = None,
    ) -> None:
        """`url`: http://, https://, grpc:// or grpcs:// with host and port. Raises: ValueError.

        `cache_control`: what every request says of answers that the gateway keeps, e.g. `no-store`.
        """
        kind = GrpcTransport if _speaks_grpc(url) else HttpTransport
        own = security.headers() | ({"cache-control": cache_control} if cache_control else {})
        self._transport = kind(url, security, own, timeout_s)
        self._retries = retries

    def answer(
        self,
        question: str,
        context: Texts,
        **arguments: Unpack[AnswerArguments],
    ) -> Answer:
        """Return the answer to one question about a context, or about passages. Raises: ApiError."""
        ask, slo = questions.ask_of(question, context, arguments)
        return self._call(questions.answer(ask), slo)

    def answers(
        self, asks: Iterable[Ask], **slo: Unpack[SloArguments]
    ) -> Iterator[Answer | ApiError]:
        """Yield what became of every question, in order; one that fails does not end the others.

        Raises: ApiError where the request as a whole fails, TypeError for what is no `Ask`.
        """
        remaining, headers = questions.checked(asks), headers_of(slo)
        while batch := list(islice(remaining, BATCH)):
            yield from self._transport.many(Batch(batch), headers)

    def answers_about(
        self, context: Texts, asks: Iterable[str | Ask], **slo: Unpack[SloArguments]
    ) -> Iterator[Answer | ApiError]:
        """Yield the same for many questions about one context or the same passages, which are sent once a batch.

        Raises: ApiError where the request as a whole fails, TypeError for a question with its own context.
        """
        remaining, headers = questions.about(asks), headers_of(slo)
        while batch := list(islice(remaining, BATCH)):
            yield from self._transport.many(Batch(batch, context), headers)

    def classify(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        task: str | None = None,
        **slo: Unpack[SloArguments],
    ) -> Classification:
        """Return the label of a text, or of a pair of texts.

        `task` None: the only classification that is served. Raises: ApiError.
        """
        return self._call(questions.classify(text, text_pair, task), slo)

    def plan(
        self,
        question: str | None = None,
        context: str | None = None,
        *,
        n_tokens: int | None = None,
        task: str | None = None,
        **slo: Unpack[SloArguments],
    ) -> PlanReport:
        """Return what such a request would get now, without an answer.

        `task`: of a classification; None: question answering. Raises: ApiError.
        """
        return self._call(questions.plan(question, context, n_tokens, task), slo)

    def feedback(
        self,
        given: Answer | str,
        *,
        answers: Sequence[str] | None = None,
        right: bool | None = None,
        question_id: str | None = None,
    ) -> Scored:
        """Report the right answers to a question (none: `[]`), or whether its answer was right.

        `given`: the answer, or the id of its request (then with the question's own id, if it had one).
        Raises: ApiError, ValueError, TypeError.
        """
        return self._call(questions.feedback(given, question_id, answers, right), SloArguments())

    def ready(self) -> bool:
        """Say whether questions can be answered now. Raises: Unreachable."""
        return self._transport.ready()

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, operation: Operation[T], slo: SloArguments) -> T:
        headers, attempts = headers_of(slo), Attempts(self._retries)
        while True:
            try:
                return self._transport.call(operation, headers)
            except ApiError as exc:
                wait_s = attempts.wait_s(exc)
            time.sleep(wait_s)


class AsyncClient:
    """Asks a gateway from an event loop. Close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        security: Security = OPEN,
        retries: Retries = PATIENT,
        timeout_s: float = 60.0,
        cache_control: str | None = None,
    ) -> None:
        """`url`: http://, https://, grpc:// or grpcs:// with host and port. Raises: ValueError.

        `cache_control`: what every request says of answers that the gateway keeps, e.g. `no-store`.
        """
        kind = AsyncGrpcTransport if _speaks_grpc(url) else AsyncHttpTransport
        own = security.headers() | ({"cache-control": cache_control} if cache_control else {})
        self._transport = kind(url, security, own, timeout_s)
        self._retries = retries

    async def answer(
        self,
        question: str,
        context: Texts,
        **arguments: Unpack[AnswerArguments],
    ) -> Answer:
        """Return the answer to one question about a context, or about passages. Raises: ApiError."""
        ask, slo = questions.ask_of(question, context, arguments)
        return await self._call(questions.answer(ask), slo)

    async def answers(
        self, asks: Iterable[Ask], **slo: Unpack[SloArguments]
    ) -> AsyncIterator[Answer | ApiError]:
        """Yield what became of every question, in order; one that fails does not end the others.

        Raises: ApiError where the request as a whole fails, TypeError for what is no `Ask`.
        """
        remaining, headers = questions.checked(asks), headers_of(slo)
        while batch := list(islice(remaining, BATCH)):
            async for found in self._transport.many(Batch(batch), headers):
                yield found

    async def answers_about(
        self, context: Texts, asks: Iterable[str | Ask], **slo: Unpack[SloArguments]
    ) -> AsyncIterator[Answer | ApiError]:
        """Yield the same for many questions about one context or the same passages, which are sent once a batch.

        Raises: ApiError where the request as a whole fails, TypeError for a question with its own context.
        """
        remaining, headers = questions.about(asks), headers_of(slo)
        while batch := list(islice(remaining, BATCH)):
            async for found in self._transport.many(Batch(batch, context), headers):
                yield found

    async def classify(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        task: str | None = None,
        **slo: Unpack[SloArguments],
    ) -> Classification:
        """Return the label of a text, or of a pair of texts.

        `task` None: the only classification that is served. Raises: ApiError.
        """
        return await self._call(questions.classify(text, text_pair, task), slo)

    async def plan(
        self,
        question: str | None = None,
        context: str | None = None,
        *,
        n_tokens: int | None = None,
        task: str | None = None,
        **slo: Unpack[SloArguments],
    ) -> PlanReport:
        """Return what such a request would get now, without an answer.

        `task`: of a classification; None: question answering. Raises: ApiError.
        """
        return await self._call(questions.plan(question, context, n_tokens, task), slo)

    async def feedback(
        self,
        given: Answer | str,
        *,
        answers: Sequence[str] | None = None,
        right: bool | None = None,
        question_id: str | None = None,
    ) -> Scored:
        """Report the right answers to a question (none: `[]`), or whether its answer was right.

        `given`: the answer, or the id of its request (then with the question's own id, if it had one).
        Raises: ApiError, ValueError, TypeError.
        """
        return await self._call(
            questions.feedback(given, question_id, answers, right), SloArguments()
        )

    async def ready(self) -> bool:
        """Say whether questions can be answered now. Raises: Unreachable."""
        return await self._transport.ready()

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, operation: Operation[T], slo: SloArguments) -> T:
        headers, attempts = headers_of(slo), Attempts(self._retries)
        while True:
            try:
                return await self._transport.call(operation, headers)
            except ApiError as exc:
                wait_s = attempts.wait_s(exc)
            await asyncio.sleep(wait_s)


def _speaks_grpc(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise ValueError(
            f"{url!r}: give {', '.join(f'{s}://' for s in SCHEMES)} with host and port"
        )
    return parts.scheme.startswith("grpc")
