"""Encodes the texts of a classification, and decodes its logits into a label.

Everything else is shared with questions (service.py, cascade.py).
"""

from __future__ import annotations

from gateway.catalog.schema import QA, Variant
from gateway.catalog.store import Task
from gateway.domain import Classification, LabelLogits, Texts, Windows
from gateway.errors import InvalidField, TextTooLong
from gateway.qa import labels
from gateway.serving_set import ServingSet


def encode(texts: Texts, serving: ServingSet, max_chars: int) -> Windows:
    """Return the window of texts. Raises: InvalidField, TextTooLong, EmptyText, MalformedText."""
    task = serving.classification
    if task is None:
        raise InvalidField(f"task: {QA!r} answers questions; send them to /v1/answer")
    _check_pair(texts, task)
    for name, text in texts.texts.items():
        if len(text) > max_chars:
            raise TextTooLong(name, len(text), max_chars)
    return serving.encoder.encode_texts(texts)


def decode(logits: LabelLogits, serving: ServingSet, variant: Variant) -> Classification:
    """Return the label of one window's logits."""
    assert serving.classification is not None, "`encode` refuses it"
    return labels.decode(logits.labels[0], serving.classification.labels, variant.decoding)


def _check_pair(texts: Texts, task: Task) -> None:
    if task.pair and texts.text_pair is None:
        raise InvalidField(f"text_pair: missing; the task {task.name} classifies pairs of texts")
    if not task.pair and texts.text_pair is not None:
        raise InvalidField(f"text_pair: the task {task.name} classifies one text; leave it out")
