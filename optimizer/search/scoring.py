"""F1 of slices of the elastic student as they would be served: cut, exported, run and decoded."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from gateway.qa.codec import Reading
from optimizer.data import evaluate
from optimizer.data.question_sets import Example
from optimizer.evaluation import decoding
from optimizer.onnx import export
from optimizer.study import workers
from optimizer.study.space import Candidate

Cut = Callable[[Candidate], PreTrainedModel]


def sample(examples: Sequence[Example]) -> list[Example]:
    """Return the questions in a fixed order that does not depend on their articles.

    The first n are the questions of a rung, so a higher rung contains the lower ones.
    """
    return sorted(examples, key=lambda e: hashlib.sha256(e.id.encode()).digest())


class SliceScorer:
    """Scores candidates on the first questions of a list; caches the answers of the last candidate."""

    def __init__(
        self,
        cut: Cut,
        tokenizer: Path,
        questions: Sequence[Example],
        lock: Path = workers.HOST_LOCK,
    ) -> None:
        self._cut, self._tokenizer, self._questions, self._lock = cut, tokenizer, questions, lock
        self._last: tuple[Candidate | None, list[Reading]] = (None, [])

    def f1(self, candidate: Candidate, n: int) -> float:
        """Return F1 on the first `n` questions, with the no-answer threshold fitted on the same.

        So F1 is optimistic, equally for all candidates.
        """
        before = self._last[1] if self._last[0] == candidate else []
        if len(before) < n:
            more = self._ask(candidate, self._questions[len(before) : n])
            self._last = (candidate, [*before, *more])
        examples, readings = self._questions[:n], self._last[1][:n]
        answers = evaluate.answers_of(readings, decoding.fit(examples, readings))
        return evaluate.score(examples, answers).f1

    def _ask(self, candidate: Candidate, questions: Sequence[Example]) -> list[Reading]:
        with tempfile.TemporaryDirectory() as folder, workers.working(self._lock):
            path = Path(folder) / "slice" / "export" / "model.onnx"
            path.parent.mkdir(parents=True)
            export.write(self._cut(candidate), path, candidate.precision)
            return evaluate.read_all(path, self._tokenizer, questions, candidate.precision)
