"""What a study trains on, certifies with and scores: questions, or labelled texts.

The task of a study decides these methods and nothing else: the rest of the pipeline is the same for both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from gateway.catalog.schema import Decoding
from gateway.domain import Answer, LabelLogits, Logits, Windows
from gateway.qa.codec import Reading, SpanEncoder


@dataclass(frozen=True, slots=True)
class Feature:
    """One training row: a window with its gold spans in tokens, or with the number of its label."""

    input_ids: np.ndarray  # (S,) int32
    token_type_ids: np.ndarray  # (S,) int8
    # (first, last) token of each distinct gold answer; (0, 0): the window holds none.
    spans: tuple[tuple[int, int], ...]
    label: int | None = None  # None: a question's row


@dataclass(frozen=True, slots=True)
class LabelReading:
    """What a classifier says of a text before any temperature."""

    logits: tuple[float, ...]  # (L,)


AnyReading = Reading | LabelReading


class Item(Protocol):
    """A question with its gold answers, or a text with its label."""

    most_contexts: ClassVar[int]  # of one article or group that count in a certificate
    units: ClassVar[tuple[str, str]]  # what a group of contexts and a context are called

    @property
    def id(self) -> str: ...

    @property
    def context(self) -> str:
        """The text that several items may share; they are never split."""
        ...

    @property
    def title(self) -> str:
        """The article or group that its context is from; empty: not known."""
        ...

    @property
    def kind(self) -> str:
        """The name of its stratum: answerable or unanswerable, or its label."""
        ...

    def row_key(self) -> list[Any]:
        """Return all that its training row depends on, as JSON."""
        ...

    def windows(self, encoder: SpanEncoder) -> Windows: ...

    def feature(self, encoder: SpanEncoder, rng: random.Random) -> Feature:
        """Return its training row."""
        ...

    def ask(self, session: Any, windows: Windows) -> Logits | LabelLogits:
        """Return what a model of ONNX Runtime gives for its windows, each run alone. Raises: InvalidLogits."""
        ...

    def read(self, windows: Windows, logits: Logits | LabelLogits) -> AnyReading:
        """Return what the logits of its windows say."""
        ...

    def answer_of(self, reading: Any, how: Decoding) -> Answer:
        """Return the answer, or the label as one, as it is served."""
        ...

    def value_of(self, text: str) -> float:
        """Return how right an answer is, 0..1: its best token F1, or whether it is the label."""
        ...
