"""What cached answers and a shared context are worth: each beside single requests, alternating, on one gateway.

`python -m loadtest.cost.caching` starts a gateway with the embedded backend, asks it, and prints a table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bertier import Answer, Client, SloArguments
from loadtest.stack import fresh_stack

REPOSITORY = Path(__file__).parents[2] / "model_repository"
PARAGRAPH = (
    "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy, a region in"
    " France. They were descended from Norse raiders and pirates from Denmark, Iceland and Norway who, under"
    " their leader Rollo, agreed to swear fealty to King Charles III of West Francia. "
)
N_WORDS, N_QUESTIONS = 5_000, 20
CACHE = {"BERTIER_CACHE_BYTES": str(16 << 20), "BERTIER_CACHE_TTL_MS": "600000"}
SLO = SloArguments(latency_ms=60_000, min_f1=0.3)


def long_context() -> str:
    """Return a text of N_WORDS words whose paragraphs differ."""
    words: list[str] = []
    while len(words) < N_WORDS:
        words += f"Chapter {len(words)}. {PARAGRAPH}".split()
    return " ".join(words[:N_WORDS])


def took_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def cached_answers(url: str, n: int) -> Iterator[str]:
    """Compare the same question with and without `no-store`, in turns."""
    for name, context in (("60 words", PARAGRAPH), (f"{N_WORDS} words", long_context())):
        with Client(url, cache_control="no-store") as new, Client(url) as kept:
            ask = [partial(c.answer, "Who was their leader?", context, **SLO) for c in (new, kept)]
            ask[1]()
            rounds = n if context is PARAGRAPH else 5
            times = [[took_ms(each) for each in ask] for _ in range(rounds)]
        asked, again = (statistics.median(column) for column in zip(*times, strict=True))
        yield f"| one question, {name} | {asked:.1f} | {again:.1f} | {asked / again:.1f} |"


def shared_context(url: str, rounds: int) -> Iterator[str]:
    """Compare many questions in single requests, at once in lines, and in one request that shares the context."""
    context = long_context()
    questions = [f"Who was the leader in chapter {61 * i}?" for i in range(N_QUESTIONS)]
    with Client(url, cache_control="no-store", timeout_s=600) as client:

        def single() -> None:
            for question in questions:
                client.answer(question, context, **SLO)

        def shared() -> None:
            found = list(client.answers_about(context, questions, **SLO))
            assert all(isinstance(each, Answer) for each in found), found

        times = [[took_ms(single), took_ms(shared)] for _ in range(rounds)]
    one_by_one, together = (statistics.median(column) for column in zip(*times, strict=True))
    yield (
        f"| {N_QUESTIONS} questions, {N_WORDS} words | {one_by_one:.0f} | {together:.0f} |"
        f" {one_by_one / together:.2f} |"
    )


def tokens_alone(rounds: int) -> Iterator[str]:
    """Compare the gateway's own part of it: encoding, with the context tokenized each time and once."""
    from gateway.domain import Question
    from gateway.qa.codec import SpanEncoder

    context = long_context()
    questions = [
        Question(f"Who was the leader in chapter {i}?", context) for i in range(N_QUESTIONS)
    ]

    def encode(encoders: Sequence[SpanEncoder]) -> None:
        for each, question in zip(encoders, questions, strict=True):
            each.encode(question)

    encoder = SpanEncoder.from_file(REPOSITORY / "tokenizer.json")
    encoder.encode(Question("Who?", context))
    times = []
    for _ in range(rounds):
        # A new encoder knows no context, and no word either: it is given the words first.
        fresh = [encoder.resized(384) for _ in questions]
        for each in fresh:
            each.encode(Question("Who?", context + " And so on."))
        same = [encoder] * N_QUESTIONS
        times.append([took_ms(partial(encode, each)) for each in (fresh, same)])
    each_time, once = (statistics.median(column) for column in zip(*times, strict=True))
    yield f"| tokens and windows of the same {N_QUESTIONS} | {each_time:.0f} | {once:.0f} | {each_time / once:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--n", type=int, default=200, help="times a short question is asked")
    parser.add_argument("--rounds", type=int, default=3, help="of the 20 questions")
    given = parser.parse_args()
    print("| asked | alone, ms | kept or shared, ms | ratio |\n|---|---|---|---|")
    os.environ.update(CACHE)
    with fresh_stack(REPOSITORY, "--backend", "embedded") as stack:
        for rows in (
            cached_answers(stack.http_url, given.n),
            shared_context(stack.http_url, given.rounds),
        ):
            for row in rows:
                print(row, flush=True)
    for row in tokens_alone(given.rounds):
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
