"""What one worker observes and its parent tests or remembers for all workers. Sent together, some times a second."""

from __future__ import annotations

import logging
from typing import Any

from gateway.errors import BackendUnavailable, BertierError
from gateway.monitoring.rollout_tests import Verdict
from gateway.monitoring.sequential_tests import Comparison
from gateway.request.feedback import Given, Lives, OwnedKey, Scored, Truth
from gateway.request.rollout import Running, Seen
from gateway.request.service import AnswerService
from gateway.workers.channel import Channel, ChannelClosed
from gateway.workers.messages import Tried

log = logging.getLogger(__name__)

MOST_ANSWERS = 200  # that are sent at once
MOST_UNSENT_BYTES = 16 << 20  # to a parent that does not read; what is observed meanwhile is lost
PARENT_MS = 1_000.0  # until the parent says what is known
REPORT_MS = 5_000.0  # until it has taken a report, for which it may ask all workers


class Observed:
    """Takes what is observed in place of this process's own tests and memory."""

    def __init__(self, service: AnswerService, channel: Channel) -> None:
        self._channel = channel
        self._answers: list[tuple[str, bytes, float, int]] = []
        self._outcomes: list[tuple[int, Seen]] = []  # and the number of their tests
        self._given: list[Given | tuple[OwnedKey, Comparison]] = []
        self._trial: tuple[int, Running] | None = None
        self._verdict: tuple[int, Verdict] | None = None  # the last one, and its tests' number
        service.shadow.elsewhere = service.rollout.elsewhere = self
        service.feedback.elsewhere = self

    # Shadow answers.

    def compared(self, plan: str, text: bytes, outcome: Comparison) -> None:
        """Have the parent test the agreement of a plan."""
        self._send("compared", (plan, text, outcome))

    def answered(self, variant: str, text: bytes, score: float, n_tokens: int) -> None:
        """Have the parent test the confidence of a variant."""
        self._answers.append((variant, text, score, n_tokens))
        if len(self._answers) >= MOST_ANSWERS:
            self._send_answers()

    # A candidate.

    def trial_of(self, number: int) -> Running | None:
        """Return the candidate whose tests have this number, if it is tried here."""
        return self._trial[1] if self._trial is not None and self._trial[0] == number else None

    def follow(self, number: int, running: Running | None) -> None:
        """Send from now on what is seen of this candidate."""
        self._trial = None if running is None else (number, running)

    def tried(self, running: Running, seen: Seen) -> None:
        """Have the parent test an outcome."""
        if self._trial is not None and self._trial[1] is running:
            self._outcomes.append((self._trial[0], seen))

    async def show_verdict(self, shown: tuple[int, Verdict]) -> None:
        """Follow the verdict on a candidate: one that is worse gets no further request."""
        self._verdict = shown
        if (running := self.trial_of(shown[0])) is not None:
            running.tests.show(shown[1])

    def verdict_on(self, tried: Tried) -> Verdict:
        """Return the verdict on a candidate, which may have come while its publication was prepared."""
        if self._verdict is not None and self._verdict[0] == tried.number:
            return self._verdict[1]
        return tried.verdict

    # Feedback.

    def remember(self, given: Given) -> None:
        """Have the parent remember an answer."""
        self._given.append(given)
        if len(self._given) >= MOST_ANSWERS:
            self._send_given()

    def predicted(self, key: OwnedKey, found: Comparison) -> None:
        """Have the parent note how the largest variant's answer compares with a remembered one."""
        self._given.append((key, found))

    async def report(self, key: OwnedKey, truth: Truth) -> Scored:
        """Have the parent take what is known of an answer, whichever worker gave it."""
        try:
            found = await self._channel.ask("report", (key, truth), timeout_ms=REPORT_MS)
        except ChannelClosed as exc:
            raise BackendUnavailable(f"feedback was not taken: {exc}; try again") from exc
        if isinstance(found, BertierError):
            raise found
        if not isinstance(found, Scored):  # it is in the parent's log
            raise BackendUnavailable("feedback was not taken; try again")
        return found

    async def known(self) -> tuple[Lives, int]:
        """Return what the parent knows by feedback, and how many answers it remembers."""
        try:
            found: tuple[Lives, int] | None = await self._channel.ask("live", timeout_ms=PARENT_MS)
        except ChannelClosed as exc:
            log.warning("the parent process did not report what is known from feedback: %s", exc)
            found = None
        return found or ({}, 0)

    async def flush(self, _: Any = None) -> None:
        """Send all that was observed."""
        self.send()

    def send(self) -> None:
        self._send_answers()
        self._send_given()
        if self._outcomes:
            self._send("outcomes", self._outcomes)
            self._outcomes = []

    def _send_answers(self) -> None:
        if self._answers:
            self._send("answers", self._answers)
            self._answers = []

    def _send_given(self) -> None:
        if self._given:
            self._send("given", self._given)
            self._given = []

    def _send(self, kind: str, payload: Any) -> None:
        if self._channel.unsent_bytes <= MOST_UNSENT_BYTES:
            self._channel.send(kind, payload)
