"""What callers report of answers, and the live F1 of each plan that follows from it. Off by default.

The last `feedback_requests` answers are remembered by the id of their request: plan, score, and hashes of the
answer's words. All numbers are of these answers. Texts are kept only where `feedback_file` asks for them. Of several
workers none remembers: their parent does, for all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gateway.auth import access
from gateway.catalog.schema import Plan
from gateway.domain import Asked, Question, Served, SetName
from gateway.errors import FeedbackConflict, InvalidField, UnknownRequest
from gateway.monitoring.prediction_powered import Outcomes
from gateway.monitoring.sequential_tests import Comparison
from gateway.observability import logs
from gateway.observability.line_file import LineFile
from gateway.observability.metrics import Metrics
from gateway.qa import scoring
from gateway.serving_set import ServingSet
from gateway.settings import Settings

log = logging.getLogger(__name__)

MAX_ANSWERS = 100  # right answers to one question
MAX_TEXT_CHARS = 64 << 20  # of all texts that are kept for `feedback_file`
MODE = 0o600  # of `feedback_file`: the texts of callers are in it
MAX_PLANS = 256  # of successive catalogs
AGREED = (Comparison.SAME, Comparison.BOTH_SILENT)

Key = tuple[str, str]  # the request's id; the question's own, or ""
OwnedKey = tuple[str | None, str, str]  # the same, after the name of the caller's key
Tokens = tuple[bytes, ...]
Identity = tuple[str, ...]  # a plan's name, its thresholds and the hashes of its models


def key_of(question: Question) -> Key:
    """Return under which ids the answer to a question of the current request is remembered."""
    return logs.request_id.get(), question.id


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of an answer: the right ones (none: the question has no answer), or a verdict."""

    answers: tuple[str, ...] | None = None
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What is remembered of an answer."""

    key: OwnedKey
    identity: Identity  # of its plan
    plan: str
    variant: str
    score: float
    tokens: Tokens
    question: Question | None  # None: no texts are kept
    answer: str


@dataclass(frozen=True, slots=True)
class Scored:
    """How the answer that was given scores: by right answers, or 1 or 0 by a verdict."""

    plan: str
    variant: str
    f1: float
    exact: float


@dataclass(slots=True)
class _Live:
    """The outcomes of one plan."""

    f1: Outcomes = field(default_factory=Outcomes)
    exact: Outcomes = field(default_factory=Outcomes)

    def add(self, kept: _Kept, sign: int = 1) -> None:
        """Take an answer, with its outcome if that is known; `sign` -1: take it out again."""
        if kept.scored is None:
            self.f1.add_other(kept.prediction, sign)
            self.exact.add_other(kept.prediction, sign)
            return
        self.f1.add_known(kept.scored.f1, kept.prediction, sign)
        self.exact.add_known(kept.scored.exact, kept.prediction, sign)


@dataclass(slots=True)
class _Kept:
    """One answer that is remembered."""

    live: _Live
    given: Given
    prediction: float  # of its outcome
    scored: Scored | None = None
    shared: bool = False  # several answers have these ids

    @property
    def n_chars(self) -> int:
        asked, answer = self.given.question, self.given.answer
        return 0 if asked is None else len(asked.question) + len(asked.context) + len(answer)


Lives = Mapping[str, Mapping[str, Any]]  # what is known of plans, by name


class Answers(Protocol):
    """Where answers are remembered, in place of this process."""

    def remember(self, given: Given) -> None: ...

    def predicted(self, key: OwnedKey, found: Comparison) -> None: ...

    async def report(self, key: OwnedKey, truth: Truth) -> Scored: ...

    async def known(self) -> tuple[Lives, int]: ...


class Feedback:
    """Remembers answers, takes what is reported of them; for one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._size = settings.feedback_requests
        self._file = settings.feedback_file
        self._max_chars = settings.max_question_chars
        self._metrics = metrics
        self.secret = secrets.token_bytes(16)  # a worker: its parent's
        self.elsewhere: Answers | None = None  # a worker: its parent remembers for all
        self._kept: OrderedDict[OwnedKey, _Kept] = OrderedDict()
        self._plans: OrderedDict[Identity, _Live] = OrderedDict()
        self._n_chars = 0
        self._writing = asyncio.Lock()

    def __len__(self) -> int:
        """Return how many answers are remembered."""
        return len(self._kept)

    def remember(self, question: Asked[Any], answered: Served[Any], serving: ServingSet) -> None:
        """Remember an answer to a question of the current request, if feedback is on; forget the oldest."""
        if not self._size or not isinstance(question, Question):
            return
        plan, text = answered.option.plan, answered.answer.text
        given = Given(
            (access.key_name(), *key_of(question)),  # callers may number their requests alike
            _identity(plan, serving),
            plan.name,
            answered.variant,
            answered.answer.score,
            self._tokens(text),
            question if self._file else None,
            text if self._file else "",
        )
        if self.elsewhere is not None:
            self.elsewhere.remember(given)
        else:
            self.keep(given)

    def keep(self, given: Given) -> None:
        """Remember an answer; forget the oldest."""
        if (known := self._kept.get(given.key)) is not None:
            known.shared = True
            return
        kept = _Kept(self._live(given.identity), given, given.score)
        kept.live.add(kept)
        self._kept[given.key] = kept
        self._n_chars += kept.n_chars
        while len(self._kept) > self._size or self._n_chars > MAX_TEXT_CHARS:
            self._forget()

    def compared(self, key: OwnedKey, found: Comparison) -> None:
        """Take how the largest variant's answer compares: it predicts the outcome, too."""
        if self.elsewhere is not None:
            self.elsewhere.predicted(key, found)
        else:
            self.predict(key, found)

    def predict(self, key: OwnedKey, found: Comparison) -> None:
        kept = self._kept.get(key)
        if kept is None or kept.shared:
            return
        kept.live.add(kept, -1)
        kept.prediction = (kept.prediction + (found in AGREED)) / 2
        kept.live.add(kept)

    async def report(self, key: Key, truth: Truth) -> Scored:
        """Take what is known of an answer; the same once more changes nothing.

        Raises: UnknownRequest, FeedbackConflict, InvalidField.
        """
        self._check(truth)
        owned = (access.key_name(), *key)
        if self.elsewhere is not None:
            return await self.elsewhere.report(owned, truth)
        return await self.take(owned, truth)

    def knows(self, key: OwnedKey) -> bool:
        return key in self._kept

    async def take(self, key: OwnedKey, truth: Truth) -> Scored:
        """Take a report that was checked. Raises: as `report`."""
        kept = self._find(key)
        scored = self._scored(kept, truth)
        if kept.scored is not None:
            if kept.scored != scored:
                self._metrics.feedback.labels("conflict").inc()
                raise FeedbackConflict(key[1])
            self._metrics.feedback.labels("repeated").inc()
            return scored
        kept.live.add(kept, -1)
        kept.scored = scored
        kept.live.add(kept)
        self._metrics.feedback.labels("taken").inc()
        if self._file is not None and (line := _line(kept.given, truth)) is not None:
            async with self._writing:
                await asyncio.to_thread(_append, self._file, line)
        return scored

    async def known(self, serving: ServingSet | None) -> tuple[Lives, int]:
        """Return what is known of each plan that is served, and how many answers are remembered."""
        if not self._size:
            return {}, 0
        if self.elsewhere is not None:
            return await self.elsewhere.known()
        return {} if serving is None else self.live(serving), len(self)

    def live(self, serving: ServingSet) -> Lives:
        """Return what is known of each plan that is served, by name; only where anything is."""
        return {plan: _report(live) for plan, live in self._known(serving)}

    def show(self, sets: Mapping[SetName, ServingSet]) -> None:
        """Bring the metrics up to date: of the plans of each set, and of no other."""
        self._metrics.note_live(
            (name, plan, live.f1.n_known, live.f1.interval())
            for name, serving in sets.items()
            for plan, live in self._known(serving)
        )

    def _known(self, serving: ServingSet) -> Iterator[tuple[str, _Live]]:
        """Yield the plans of a set of which outcomes are known, by name."""
        for plan in serving.catalog.plans:
            live = self._plans.get(_identity(plan, serving))
            if live is not None and live.f1.n_known:
                yield plan.name, live

    def _check(self, truth: Truth) -> None:
        """Raise InvalidField unless there is either a list of answers or a verdict."""
        if (truth.answers is None) is (truth.right is None):
            raise InvalidField("answers, right: send one of the two")
        if len(truth.answers or ()) > MAX_ANSWERS:
            raise InvalidField(
                f"answers: {len(truth.answers or ())} items, the limit is {MAX_ANSWERS}"
            )
        for i, text in enumerate(truth.answers or ()):
            if len(text) > self._max_chars:
                raise InvalidField(
                    f"answers.{i}: {len(text)} characters, the limit is {self._max_chars}"
                )
            if not text.strip():
                raise InvalidField(
                    f"answers.{i}: empty; send no answers for a question without one"
                )

    def _find(self, key: OwnedKey) -> _Kept:
        kept = self._kept.get(key)
        if kept is None:
            self._metrics.feedback.labels("unknown").inc()
            raise UnknownRequest(*key[1:], self._size)
        if kept.shared:
            raise InvalidField(
                "request_id: several answers have these ids; give every question of a list an id of its"
                " own, and every request another X-Request-Id"
            )
        return kept

    def _scored(self, kept: _Kept, truth: Truth) -> Scored:
        if truth.answers is None:
            by_verdict = float(bool(truth.right))
            return Scored(kept.given.plan, kept.given.variant, by_verdict, by_verdict)
        right = [t for t in map(self._tokens, truth.answers) if t] or [()]
        given = kept.given
        f1 = max(scoring.token_f1(given.tokens, tokens) for tokens in right)
        return Scored(given.plan, given.variant, f1, float(given.tokens in right))

    def _tokens(self, text: str) -> Tokens:
        """Return hashes of the words that F1 counts; they say nothing without this process's secret."""
        return tuple(
            hashlib.blake2b(token.encode(), digest_size=8, key=self.secret).digest()
            for token in scoring.tokens_of(text)
        )

    def _live(self, identity: Identity) -> _Live:
        if identity not in self._plans:
            self._plans[identity] = _Live()
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return self._plans[identity]

    def _forget(self) -> None:
        _, oldest = self._kept.popitem(last=False)
        oldest.live.add(oldest, -1)
        self._n_chars -= oldest.n_chars


def _identity(plan: Plan, serving: ServingSet) -> Identity:
    """Return what changes when other models answer under the plan's name, or are asked at other scores."""
    models = (serving.catalog.variant(name).sha256 for name in plan.variants)
    return (plan.name, *map(repr, plan.thresholds), *models)


def _report(live: _Live) -> Mapping[str, Any]:
    """Return the intervals of one plan for /v1/variants; None: too few outcomes are known."""
    found = {
        "f1": live.f1.interval(),
        "f1_without_predictions": live.f1.of_known_alone(),
        "exact": live.exact.interval(),
    }
    counts = {"known": live.f1.n_known, "answers": live.f1.n_known + live.f1.n_others}
    return counts | {name: each and asdict(each) for name, each in found.items()}


def _line(given: Given, truth: Truth) -> str | None:
    """Return a row of a question set; None: the right answer is not known, or does not stand in the text."""
    asked = given.question
    texts: Sequence[str] | None = truth.answers
    if texts is None and truth.right:
        texts = [given.answer] if given.answer else []
    if asked is None or texts is None:
        return None
    standing = [text for text in texts if text in asked.context]
    if texts and not standing:
        return None
    row = {
        "id": uuid.uuid4().hex,  # a caller's ids may come again
        "request_id": given.key[1],
        "question": asked.question,
        "context": asked.context,
        "answers": {
            "text": standing,
            "answer_start": [asked.context.index(text) for text in standing],
        },
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _append(file: Path, line: str) -> None:
    """Append a line, or nothing of it: half a line, of a full disk or a killed gateway, is cut off first."""
    try:
        with closing(LineFile(file, MODE)) as opened:
            opened.append(line.encode())
    except OSError as exc:
        log.error("feedback_file: %s cannot be written (%s); a question is lost", file, exc)
