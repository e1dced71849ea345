"""Long contexts: asks the windows of a context one by one, the most promising first.

When time runs out, the windows answered so far give the answer; it is marked as partial.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gateway.backends.protocol import Backend
from gateway.catalog.schema import Variant
from gateway.domain import Inference, Ints, Logits, Windows
from gateway.errors import DeadlineExceeded

AT_ONCE = 2  # windows of one context in flight per model server: more would delay other requests
# Of the time left: kept to decode and answer.
RESERVE_SHARE = 0.1
RESERVE_MS, RESERVE_WINDOW_MS = 5.0, 0.5


def rank(windows: Windows) -> Ints:  # (W,)
    """Return the windows in the order in which to ask them: by the question's words that they hold.

    Words that fewer windows contain weigh more (inverse document frequency, Sparck Jones 1972); equals
    stay in the order of the text.
    """
    ids, inside = windows.input_ids, windows.is_context  # (W, S)
    head = int(np.argmax(inside[0]))
    question_ids = np.unique(ids[0, :head])
    row, column = np.nonzero(inside & np.isin(ids, question_ids))
    held = np.unique(np.stack([row, ids[row, column]], axis=1), axis=0)  # (N, 2) window, word
    words, which = np.unique(held[:, 1], return_inverse=True)
    count = np.bincount(which, minlength=len(words))
    weight = np.log((windows.n_windows + 1) / count)
    score = np.bincount(held[:, 0], weight[which], windows.n_windows)
    return np.argsort(-score, kind="stable")


def reserve_ms(left_ms: float, n_windows: int) -> float:
    """Return the time before the deadline that is reserved for building the answer from the windows read."""
    share_ms = RESERVE_SHARE * left_ms
    return share_ms + min(share_ms, RESERVE_MS + RESERVE_WINDOW_MS * n_windows)


async def infer(
    backend: Backend,
    variant: Variant,
    windows: Windows,
    order: Sequence[int] | Ints,
    left_ms: float,
    *,
    partial: bool,
) -> tuple[Windows, Inference]:
    """Return the windows that were answered, in the order of the text, and their logits.

    Asks only those of `order`: all of them, or, where an answer may be `partial`, as many as the time
    allows, at least one.
    Raises: DeadlineExceeded, BackendUnavailable, BackendError.
    """
    began = time.perf_counter()
    places = asyncio.Semaphore(AT_ONCE * backend.capacity(variant))
    size = variant.max_batch

    async def ask(rows: Ints) -> tuple[Ints, Inference]:
        async with places:
            spent_ms = (time.perf_counter() - began) * 1e3
            return rows, await backend.infer(variant, take(windows, rows), left_ms - spent_ms)

    pieces = [np.asarray(order[at : at + size]) for at in range(0, len(order), size)]
    tasks = [asyncio.create_task(ask(rows)) for rows in pieces]
    try:
        until_ms = left_ms - reserve_ms(left_ms, len(order)) if partial else left_ms
        await _until(tasks, until_ms / 1e3, least=1 if partial else len(tasks))
        done = [task.result() for task in tasks if _answered(task)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not done or (len(done) < len(tasks) and not partial):
        raise DeadlineExceeded(f"{variant.name}: the model server did not answer in time")
    return _joined(windows, done, (time.perf_counter() - began) * 1e3)


async def _until(
    tasks: Sequence[asyncio.Task[tuple[Ints, Inference]]], wait_s: float, least: int
) -> None:
    """Wait for all, not longer than this, but for at least so many. Raises: BackendError."""
    ends = time.perf_counter() + wait_s
    pending = set(tasks)
    while pending:
        short = len(tasks) - len(pending) < least
        left_s = None if short else max(0.0, ends - time.perf_counter())
        done, pending = await asyncio.wait(
            pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, DeadlineExceeded):
                raise error
        if not done:
            return


def _answered(task: asyncio.Task[tuple[Ints, Inference]]) -> bool:
    """Say whether a piece has an answer; one that ran out of time has none."""
    return task.done() and not task.cancelled() and task.exception() is None


def _joined(
    windows: Windows, done: Sequence[tuple[Ints, Inference]], took_ms: float
) -> tuple[Windows, Inference]:
    rows = np.concatenate([rows for rows, _ in done])
    back = np.argsort(rows)
    start = np.concatenate([found.spans.start for _, found in done])[back]
    end = np.concatenate([found.spans.end for _, found in done])[back]
    queue_ms = min(found.queue_ms for _, found in done)
    n_batches = sum(found.n_batches for _, found in done)
    inference = Inference(Logits(start, end), queue_ms, took_ms - queue_ms, n_batches)
    return take(windows, rows[back]), inference


def take(windows: Windows, rows: Sequence[int] | Ints) -> Windows:
    """Return some of the windows."""
    return replace(
        windows,
        input_ids=windows.input_ids[rows],
        attention_mask=windows.attention_mask[rows],
        token_type_ids=windows.token_type_ids[rows],
        offsets=windows.offsets[rows],
        is_context=windows.is_context[rows],
    )
