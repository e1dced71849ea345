"""The caller's own threshold: decides again whether a question has an answer. Pure.

Certificates, cascades and shadow answers use the variant's threshold; this one is applied last, to the reply only.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.domain import Answer, Question


def apply(answer: Answer, question: Question) -> Answer:
    """Return the answer under the thresholds of the question.

    `max_no_answer_probability` replaces the variant's threshold: the best span answers where the
    probability of no answer is at most this. `min_score` then withholds an answer with a lower score. The score of
    a decision that the variant did not make is extrapolated.
    """
    if question.max_no_answer_probability is not None:
        answered = answer.no_answer_probability <= question.max_no_answer_probability
        answer = _decided(answer, answered=answered)
    if question.min_score is not None and answer.score < question.min_score:
        answer = _decided(answer, answered=False)
    return answer


def _decided(answer: Answer, *, answered: bool) -> Answer:
    """Return the answer, decided this way."""
    answered = answered and answer.best is not None
    if answered == (answer.start is not None):
        return answer
    other = replace(answer, score=answer.other_score, other_score=answer.score)
    if not answered or other.best is None:
        return replace(other, text="", start=None, end=None)
    best = other.best
    return replace(other, text=best.text, start=best.start, end=best.end)
