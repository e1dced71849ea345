"""A question parsed from a message of any protocol: its texts, the caller's options, and how to show the answer.

Both frontends build it from their messages and show answers by it. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate

from gateway.domain import PASSAGE_BREAK, Answer, Question, Span
from gateway.errors import InvalidField, TextTooLong, TooManyItems
from gateway.frontends.slo_headers import MAX_ID_CHARS
from gateway.qa import codec
from gateway.qa.boundaries import sentence_around
from gateway.settings import Settings


class OffsetUnit(StrEnum):
    """What the offsets of an answer count."""

    CODE_POINTS = "code-points"  # Python, Rust's chars, SQL
    UTF_16 = "utf-16"  # JavaScript, Java, C#
    UTF_8 = "utf-8"  # bytes: Go, Rust, C


def offset(text: str, position: int, unit: OffsetUnit) -> int:
    """Return the position, given in code points, in another unit."""
    if unit is OffsetUnit.CODE_POINTS or text.isascii():
        return position
    if unit is OffsetUnit.UTF_8:
        return len(text[:position].encode())
    return len(text[:position].encode("utf-16-le")) // 2


@dataclass(frozen=True, slots=True)
class PassageText:
    """One of several passages that a question is asked about."""

    text: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ParsedQuestion:
    """A question, and how its answer is to be shown."""

    question: Question
    passages: tuple[PassageText, ...] = ()  # none: it was asked about one context
    offset_unit: OffsetUnit = OffsetUnit.CODE_POINTS
    sentence: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A piece of a passage or of the context, its offsets in the caller's unit."""

    text: str
    start: int
    end: int
    passage: int | None  # its index; None: there is one context
    passage_id: str | None = None


def about(
    question: Question,
    context: str | None,
    passages: Sequence[PassageText] | None,
    settings: Settings,
) -> tuple[Question, tuple[PassageText, ...]]:
    """Return the question about the one context or the passages that were sent.

    Raises: InvalidField, TooManyItems, TextTooLong.
    """
    if passages is None:
        if context is None:
            raise InvalidField("context: missing; send it, or passages as contexts")
        return replace(question, context=context), ()
    if context is not None:
        raise InvalidField("contexts: sent beside context; send one of the two")
    joined, starts = _joined(passages, settings)
    return replace(question, context=joined, passage_starts=starts), tuple(passages)


def _joined(passages: Sequence[PassageText], settings: Settings) -> tuple[str, tuple[int, ...]]:
    """Return the passages as one text, and where each begins in it."""
    if not passages:
        raise InvalidField(f"contexts: empty; send 1 to {settings.max_passages} passages")
    if len(passages) > settings.max_passages:
        raise TooManyItems("contexts", len(passages), settings.max_passages)
    for i, passage in enumerate(passages):
        if passage.id is not None and len(passage.id) > MAX_ID_CHARS:
            raise TextTooLong(f"contexts.{i}.id", len(passage.id), MAX_ID_CHARS)
    joined = PASSAGE_BREAK.join(passage.text for passage in passages)
    if len(joined) > settings.max_context_chars:
        raise TextTooLong("contexts", len(joined), settings.max_context_chars)
    sizes = (len(passage.text) + len(PASSAGE_BREAK) for passage in passages[:-1])
    return joined, tuple(accumulate(sizes, initial=0))


def check_options(question: Question, settings: Settings) -> None:
    """Raise InvalidField for an option that is out of its range."""
    if not 1 <= question.top_k <= settings.max_top_k:
        raise InvalidField(
            f"top_k: {question.top_k} is not allowed; allowed: 1 to {settings.max_top_k}"
        )
    longest = question.max_answer_tokens
    if longest is not None and not 1 <= longest <= codec.MAX_ANSWER_TOKENS:
        raise InvalidField(
            f"max_answer_tokens: {longest} is not allowed; allowed: 1 to {codec.MAX_ANSWER_TOKENS}"
        )
    for name in ("min_score", "max_no_answer_probability"):
        value = getattr(question, name)
        if value is not None and not 0 <= value <= 1:
            raise InvalidField(f"{name}: {value:g} is not allowed; allowed: 0 to 1")


def offset_unit(name: str) -> OffsetUnit:
    """Return the unit of this name. Raises: InvalidField."""
    try:
        return OffsetUnit(name)
    except ValueError:
        allowed = ", ".join(OffsetUnit)
        raise InvalidField(f"offset_unit: {name[:80]!r} is not known; allowed: {allowed}") from None


def place_of_answer(parsed: ParsedQuestion, answer: Answer) -> Place | None:
    """Return where the answer is; None: there is none."""
    if answer.start is None or answer.end is None:
        return None
    return _place(parsed, answer.start, answer.end)


def place_of_span(parsed: ParsedQuestion, span: Span) -> Place:
    """Return where an alternative is."""
    return _place(parsed, span.start, span.end)


def sentence_of_answer(parsed: ParsedQuestion, answer: Answer) -> Place | None:
    """Return the sentence around the answer; None: it was not asked for, or there is no answer."""
    if not parsed.sentence or answer.start is None or answer.end is None:
        return None
    text, base, _ = _text_at(parsed, answer.start)
    begin, end = sentence_around(text, answer.start - base, answer.end - base)
    return _place(parsed, begin + base, end + base)


def _place(parsed: ParsedQuestion, start: int, end: int) -> Place:
    text, base, index = _text_at(parsed, start)
    begin, close = start - base, end - base
    unit = parsed.offset_unit
    return Place(
        text[begin:close],
        offset(text, begin, unit),
        offset(text, close, unit),
        index,
        None if index is None else parsed.passages[index].id,
    )


def _text_at(parsed: ParsedQuestion, position: int) -> tuple[str, int, int | None]:
    """Return the text at a position of the joined one, where it begins there, and its index."""
    question = parsed.question
    if not parsed.passages:
        return question.context, 0, None
    index = question.passage_at(position)
    return parsed.passages[index].text, question.passage_starts[index], index
