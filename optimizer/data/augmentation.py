"""Makes unanswerable questions out of answerable ones, so that every source teaches when to abstain.

Three kinds. *Nearest*: the question with the most similar other paragraph of its article or set, which
is what a retriever that misses returns. *Random*: with any other paragraph of its set. *Swaps*: the
question with an entity, a number or an antonym exchanged, so that it asks for something that its
paragraph does not say.
Source: Rajpurkar et al. 2018 (SQuAD 2.0), section 3.3 and table 2, for the kinds; Clark & Gardner 2018
for questions with other paragraphs of their article.

Pure but for its seed. A made question never keeps a gold answer that the new paragraph contains; whether
a judge finds an answer there all the same is for the caller to ask (`Judge`).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from optimizer.data.question_sets import MIXED_ARTICLES, Example

NEAREST_OF = 4  # most similar paragraphs, one of which is drawn
SAME_ARTICLE = 0.1  # added to the cosine of a paragraph of the same article
BLOCK = 1024  # questions compared with all paragraphs at once

Judge = Callable[[Sequence[Example]], Sequence[bool]]  # whether each is answerable after all

_ENTITY = re.compile(r"(?<![.?!]\s)(?<!^)\b[A-Z][\w'-]+(?:\s+(?:of\s+|the\s+)?[A-Z][\w'-]+)*")
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?![\w]|\.\d)")
_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_ANTONYMS = (  # of these a paragraph that says one thing rarely says the other
    ("before", "after"),
    ("largest", "smallest"),
    ("larger", "smaller"),
    ("biggest", "smallest"),
    ("highest", "lowest"),
    ("higher", "lower"),
    ("most", "least"),
    ("best", "worst"),
    ("better", "worse"),
    ("oldest", "youngest"),
    ("older", "younger"),
    ("longest", "shortest"),
    ("earlier", "later"),
    ("north", "south"),
    ("northern", "southern"),
    ("east", "west"),
    ("eastern", "western"),
    ("above", "below"),
    ("began", "ended"),
    ("started", "stopped"),
    ("increase", "decrease"),
    ("increased", "decreased"),
    ("rose", "fell"),
    ("won", "lost"),
    ("accepted", "rejected"),
    ("supported", "opposed"),
    ("bought", "sold"),
    ("opened", "closed"),
    ("hate", "love"),
    ("majority", "minority"),
    ("male", "female"),
    ("men", "women"),
    ("father", "mother"),
    ("son", "daughter"),
    ("king", "queen"),
    ("brother", "sister"),
    ("husband", "wife"),
)
_OPPOSITE = {a: b for pair in _ANTONYMS for a, b in (pair, pair[::-1])}
_WORD = re.compile(r"[A-Za-z]+")
_NEGATED = re.compile(r"\b(?:not|no|never|without)\b|n't\b", re.IGNORECASE)


def _often_first() -> Set[str]:
    """Return words that begin a sentence in a quotation, not names."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # takes seconds to import

    found: Set[str] = ENGLISH_STOP_WORDS
    return found


class Kind(StrEnum):
    """How an unanswerable question was made."""

    NEAREST = "nearest"
    RANDOM = "random"
    ENTITY = "entity"
    NUMBER = "number"
    ANTONYM = "antonym"


SHARES = {
    Kind.NEAREST: 0.5,
    Kind.RANDOM: 0.2,
    Kind.ENTITY: 0.15,
    Kind.NUMBER: 0.05,
    Kind.ANTONYM: 0.1,
}


@dataclass(frozen=True, slots=True)
class Made:
    """An unanswerable question and how it came about."""

    example: Example
    kind: Kind
    original: Example


def balanced(
    examples: Sequence[Example], share: float, seed: int, judge: Judge | None = None
) -> list[Made]:
    """Return new unanswerable questions, enough for `share` of all to be unanswerable.

    Fewer where the texts do not give more. `judge` drops those with another paragraph that have an
    answer there. The same examples and seed give the same questions.
    """
    n_unanswerable = sum(not e.answerable for e in examples)
    wanted = round((share * len(examples) - n_unanswerable) / (1 - share))
    if wanted <= 0:
        return []
    candidates = _candidates([e for e in examples if e.answerable], seed, judge)
    quotas = {kind: round(wanted * part) for kind, part in SHARES.items()}
    found = [made for kind, quota in quotas.items() for made in candidates[kind][:quota]]
    rest = [m for kind in (Kind.NEAREST, Kind.RANDOM) for m in candidates[kind][quotas[kind] :]]
    return found + rest[: wanted - len(found)]


def _candidates(
    examples: Sequence[Example], seed: int, judge: Judge | None
) -> dict[Kind, list[Made]]:
    """Return what can be made of each kind, in random order; each question is used once if it can be."""
    rng = random.Random(seed)
    order = list(examples)
    rng.shuffle(order)
    by_kind: dict[Kind, list[Made]] = {kind: [] for kind in Kind}
    moved: list[Made] = []
    paragraphs = _Paragraphs([e.context for e in examples], [e.title for e in examples])
    for example, near in zip(order, paragraphs.nearest(order), strict=True):
        if swapped := _swapped(example, rng):
            by_kind[swapped.kind].append(swapped)
        kind = Kind.RANDOM if rng.random() < SHARES[Kind.RANDOM] / _MOVED else Kind.NEAREST
        pool = paragraphs.sample(rng) if kind == Kind.RANDOM else rng.sample(near, len(near))
        if (context := _lacking(example, pool)) is not None:
            moved.append(Made(_with(example, kind, context=context), kind, example))
    answered = judge([m.example for m in moved]) if judge else [False] * len(moved)
    for made, has_answer in zip(moved, answered, strict=True):
        if not has_answer:
            by_kind[made.kind].append(made)
    return by_kind


_MOVED = SHARES[Kind.NEAREST] + SHARES[Kind.RANDOM]


def _with(example: Example, kind: Kind, *, question: str = "", context: str = "") -> Example:
    return replace(
        example,
        id=f"{example.id}-{kind}",
        question=question or example.question,
        context=context or example.context,
        answers=(),
        starts=(),
    )


def _lacking(example: Example, contexts: Sequence[str]) -> str | None:
    """Return the first paragraph that none of the answers occurs in."""
    answers = [answer.lower() for answer in example.answers]
    for context in contexts:
        text = context.lower()
        if context != example.context and not any(answer in text for answer in answers):
            return context
    return None


class _Paragraphs:
    """The paragraphs of a set, compared with questions by their rare words."""

    def __init__(self, contexts: Sequence[str], titles: Sequence[str]) -> None:
        title_of = dict(zip(contexts, titles, strict=True))
        self._contexts = sorted(title_of)
        self._titles = np.array([title_of[c] for c in self._contexts])
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(stop_words="english", sublinear_tf=True, dtype=np.float32)
        self._table = self._words.fit_transform(self._contexts)

    def sample(self, rng: random.Random) -> list[str]:
        return rng.sample(self._contexts, min(NEAREST_OF, len(self._contexts)))

    def nearest(self, examples: Sequence[Example]) -> list[list[str]]:
        """Return the paragraphs most like each question, but its own."""
        found: list[list[str]] = []
        for at in range(0, len(examples), BLOCK):
            block = examples[at : at + BLOCK]
            alike = (self._words.transform([e.question for e in block]) @ self._table.T).toarray()
            for row, example in zip(alike, block, strict=True):
                known = example.title not in ("", MIXED_ARTICLES)
                bonus = SAME_ARTICLE * (known & (self._titles == example.title))
                best = np.argsort(-row - bonus, kind="stable")[: NEAREST_OF + 1]
                near = [self._contexts[i] for i in best if self._contexts[i] != example.context]
                found.append(near[:NEAREST_OF])
        return found


def _swapped(example: Example, rng: random.Random) -> Made | None:
    """Return the question with one part exchanged for another that its paragraph does not answer."""
    makers = {Kind.ENTITY: _other_entity, Kind.NUMBER: _other_number, Kind.ANTONYM: _antonym}
    for kind in rng.sample(sorted(makers), len(makers)):
        question = makers[kind](example, rng)
        if question and question != example.question:
            return Made(_with(example, kind, question=question), kind, example)
    return None


def _other_entity(example: Example, rng: random.Random) -> str | None:
    """Exchange a name for another of the paragraph that is not beside the answer."""
    mentions = list(_ENTITY.finditer(example.question))
    if not mentions:
        return None
    place = rng.choice(mentions)
    beside = " ".join([*_sentences_with(example), *example.answers, example.question]).lower()
    names = {m.group() for m in _ENTITY.finditer(example.context)}
    plain = set(_WORD.findall(example.context)) | _often_first()
    others = sorted(
        name
        for name in names
        if name.lower() not in beside and name.split()[0].lower() not in plain and "'" not in name
    )
    return _replaced(example.question, place, rng.choice(others)) if others else None


def _other_number(example: Example, rng: random.Random) -> str | None:
    """Exchange a number for one of as many digits that the paragraph does not name."""
    mentions = list(_NUMBER.finditer(example.question))
    if not mentions:
        return None
    place = rng.choice(mentions)
    near = int(place.group().replace(",", ""))
    step = max(2, min(30, near // 3 or 2))
    drawn = near + rng.choice((-1, 1)) * rng.randint(1, step)
    drawn = near + step if drawn <= 0 else drawn
    text = f"{drawn:,}" if "," in place.group() else str(drawn)
    return None if text in example.context else _replaced(example.question, place, text)


def _antonym(example: Example, rng: random.Random) -> str | None:
    """Exchange a word for its opposite; two opposites would say the same again."""
    if _NEGATED.search(example.question):
        return None
    words = [m for m in _WORD.finditer(example.question) if m.group().lower() in _OPPOSITE]
    if not words:
        return None
    place = rng.choice(words)
    opposite = _OPPOSITE[place.group().lower()]
    if re.search(rf"\b{opposite}\b", example.context, re.IGNORECASE):
        return None
    return _replaced(example.question, place, opposite)


def _sentences_with(example: Example) -> list[str]:
    """Return the sentences that hold an answer."""
    found, at = [], 0
    for sentence in _SENTENCE.split(example.context):
        first = example.context.index(sentence, at)
        at = first + len(sentence)
        if any(first <= start < at for start in example.starts):
            found.append(sentence)
    return found


def _replaced(text: str, place: re.Match[str], new: str) -> str:
    return text[: place.start()] + new + text[place.end() :]


def by_kind(made: Sequence[Made]) -> dict[Kind, int]:
    """Return how many there are of each kind."""
    counts: dict[Kind, int] = defaultdict(int)
    for one in made:
        counts[one.kind] += 1
    return dict(counts)
