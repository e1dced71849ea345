"""Question answering as Hugging Face's inference clients speak it: `POST /` and `POST /models/qa`.

What the parameters mean is documented here; choosing and answering are the service's, as for any question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex
from pydantic import Field
from pydantic_core import to_json

from gateway.domain import Answered, Question, Span
from gateway.errors import InvalidField
from gateway.frontends.parsed_question import ParsedQuestion
from gateway.frontends.schemas import ReplyBody, Sent
from gateway.qa import codec
from gateway.settings import Settings

PATHS = ("/", "/models/qa")
FIXED = {  # of the windows that every variant reads, and that its certificate is about
    "doc_stride": codec.OVERLAP_TOKENS,
    "max_question_len": codec.MAX_QUESTION_TOKENS,
    "max_seq_len": codec.MAX_TOKENS,
}
# Letters, marks and digits of scripts that put spaces between words.
IN_WORD = regex.compile(
    r"(?V1)[[\p{L}\p{M}\p{N}_]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
)


class HuggingFaceInputs(Sent):
    """One question about one context."""

    question: str = Field(description="At least one visible character.")
    context: str = Field(description="The text that holds the answer, if there is one.")


class HuggingFaceParameters(Sent):
    """How to answer; what is absent or null is as described."""

    top_k: int | None = Field(None, ge=1, description="How many answers; above 1: a list of them.")
    handle_impossible_answer: bool | None = Field(
        None, description="Whether `no answer` may be one; absent: false."
    )
    max_answer_len: int | None = Field(
        None,
        ge=1,
        le=codec.MAX_ANSWER_TOKENS,
        description=f"In tokens; absent: {codec.MAX_ANSWER_TOKENS}.",
    )
    align_to_words: bool | None = Field(
        None, description="Whether answers are widened to whole words; absent: true."
    )
    doc_stride: int | None = Field(None, description=f"{codec.OVERLAP_TOKENS} is served.")
    max_question_len: int | None = Field(
        None, description=f"{codec.MAX_QUESTION_TOKENS} is served."
    )
    max_seq_len: int | None = Field(None, description=f"{codec.MAX_TOKENS} is served.")


class HuggingFaceBody(Sent):
    """A question as Hugging Face's clients send it."""

    inputs: HuggingFaceInputs
    parameters: HuggingFaceParameters = HuggingFaceParameters()

    def to_parsed(self, settings: Settings) -> ParsedQuestion:
        """Raises: InvalidField for what is not served as asked."""
        max_top_k = settings.max_top_k
        wanted = self.parameters
        if wanted.top_k is not None and wanted.top_k > max_top_k:
            raise InvalidField(f"parameters.top_k: {wanted.top_k}; allowed: 1 to {max_top_k}")
        for name, served in FIXED.items():
            given = getattr(wanted, name)
            if given is not None and given != served:
                raise InvalidField(
                    f"parameters.{name}: {given} is not served; leave it out, or send {served}: accuracy is"
                    " certified for windows of that size"
                )
        # All spans: their shares and that of no answer make 1.
        return ParsedQuestion(
            Question(
                self.inputs.question,
                self.inputs.context,
                top_k=codec.N_BEST,
                max_answer_tokens=wanted.max_answer_len,
            )
        )


class HuggingFaceAnswer(ReplyBody):
    """One answer; `no answer`: empty, at 0 to 0."""

    answer: str
    score: float = Field(description="Share of the n-best mass, `no answer` included.")
    start: int = Field(description="Code points of the context.")
    end: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A piece of the context, with its share of the n-best mass."""

    start: int
    end: int
    share: float


def answer_body(answered: Answered, body: HuggingFaceBody) -> bytes:
    """Return the answer as JSON: an object, or a list where more than one was asked for."""
    wanted = body.parameters
    places = _ranked(answered, allow_none=bool(wanted.handle_impossible_answer))
    context = body.inputs.context
    if wanted.align_to_words is not False:
        places = _distinct([_in_whole_words(context, place) for place in places])
    answers = [
        HuggingFaceAnswer(answer=context[p.start : p.end], score=p.share, start=p.start, end=p.end)
        for p in places[: wanted.top_k or 1]
    ]
    return to_json(answers if (wanted.top_k or 1) > 1 else answers[0])


def _ranked(answered: Answered, *, allow_none: bool) -> list[_Place]:
    """Return the answers, best first; `no answer` stands first where the variant says so."""
    spans: Sequence[Span] = answered.answer.alternatives
    places = [_Place(span.start, span.end, span.probability) for span in spans]
    none = _Place(0, 0, max(0.0, 1.0 - sum(place.share for place in places)))
    if not places:
        return [none]
    if not allow_none:
        return places
    if not answered.answer.text:
        return [none, *places]
    after_first = [none, *places[1:]]
    return [places[0], *sorted(after_first, key=lambda place: -place.share)]


def _distinct(places: Sequence[_Place]) -> list[_Place]:
    """Return the first of those that are at one place."""
    first: dict[tuple[int, int], _Place] = {}
    for place in places:
        first.setdefault((place.start, place.end), place)
    return list(first.values())


def _in_whole_words(context: str, place: _Place) -> _Place:
    """Return the place, widened to the words that it begins and ends in."""
    start, end = place.start, place.end
    if start == end:
        return place
    while start > 0 and IN_WORD.match(context[start]) and IN_WORD.match(context[start - 1]):
        start -= 1
    while end < len(context) and IN_WORD.match(context[end - 1]) and IN_WORD.match(context[end]):
        end += 1
    return _Place(start, end, place.share)
