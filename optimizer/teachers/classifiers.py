"""Finished classifiers that teach a classification and are not published.

Any checkpoint that transformers loads for sequence classification, with its own tokenizer. Each is asked once about
every training text; what students learn is the mean of their probabilities.
Legend: R rows, L labels, B rows of a batch, S tokens of its longest.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification

from gateway.qa.codec import SpanEncoder
from optimizer.data.items import Feature
from optimizer.data.labelled_texts import LabelledText
from optimizer.models.bert import CLASSIFIES
from optimizer.study import stages
from optimizer.teachers import checkpoint
from optimizer.teachers.errors import TeacherError
from optimizer.teachers.inference import FULL_PRECISION
from optimizer.training import loop, teacher_outputs
from optimizer.training.loop import Batch
from optimizer.training.teacher_outputs import TeacherOutputs, TeacherStates

log = logging.getLogger(__name__)

UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls labels that were given no name
FEW = 200  # with fewer rows a teacher may be worse than the constant answer by chance


@dataclass(frozen=True)
class ClassifierTeachers:
    """Classifiers of the study's labels."""

    names: tuple[str, ...]
    window: int | None  # tokens; None: each teacher's own
    folder: Path  # of what they said
    labels: tuple[str, ...]  # of the study, in the order of its logits

    def inputs(self) -> dict[str, Any]:
        """Return everything that their answers depend on."""
        return {
            "teachers": [checkpoint.identity_once(name) for name in self.names],
            "window": self.window,
        }

    def answers(
        self, examples: Sequence[LabelledText], features: Sequence[Feature], _: SpanEncoder
    ) -> tuple[MeanClasses, dict[str, Any]]:
        """Return the targets of training rows, one a text, and each teacher's accuracy on them.

        Asks the teachers what they were not asked before. Raises: TeacherError.
        """
        found = {name: self._asked(name, examples, features) for name in self.names}
        accuracies = {
            name: _accuracy(name, states.logits, examples) for name, states in found.items()
        }
        return MeanClasses(tuple(found.values())), {
            name: {"accuracy": accuracy} for name, accuracy in accuracies.items()
        }

    def _asked(
        self, name: str, examples: Sequence[LabelledText], features: Sequence[Feature]
    ) -> TeacherStates:
        """Return a teacher's logits of these texts; a killed run goes on where it stopped."""
        texts = hashlib.sha256()
        for example in examples:
            texts.update(repr((example.text, example.text_pair)).encode("utf-8", "surrogatepass"))
        one = replace(self, names=(name,))
        inputs = one.inputs() | {"texts": texts.hexdigest(), "labels": self.labels}
        folder = checkpoint.answers_folder(self.folder, name, f"{name} {texts.hexdigest()}")

        def work() -> dict[str, Any]:
            teacher, tokenizer = load(name, self.labels, self.window)
            rows = [_row(tokenizer, example) for example in examples]
            teacher_outputs.write(teacher, rows, folder)
            return {"rows": len(rows)}

        stages.run_stage(folder, inputs, work)
        return TeacherStates.open(folder, features, n_labels=len(self.labels))


@dataclass(frozen=True, slots=True)
class MeanClasses:
    """The mean probabilities of several classifiers, row by row."""

    teachers: tuple[TeacherStates, ...]

    def of(self, batch: Batch) -> TeacherOutputs:
        """Return the logits of the teachers' mean, (B, L); of one its own. No hidden states."""
        said = [torch.from_numpy(_logits(t, batch.rows)) for t in self.teachers]
        if len(said) > 1:
            shares = torch.stack([logits.log_softmax(-1) for logits in said])
            said = [shares.logsumexp(0)]  # the number of teachers adds a constant
        return TeacherOutputs((said[0].to(batch.input_ids.device),), None)


class _Classifier(nn.Module):
    """A checkpoint that gives the study's labels in their order, in the form of our own classifiers."""

    def __init__(self, model: Any, order: Sequence[int], *, takes_types: bool) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.config = SimpleNamespace(num_labels=len(order), problem_type=CLASSIFIES)
        self._pad_id = getattr(model.config, "pad_token_id", None) or 0
        self._takes_types = takes_types
        self._exact = model.config.model_type in FULL_PRECISION

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, S), 0 where there is padding
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        **_: Any,
    ) -> Any:
        ids = input_ids.masked_fill(attention_mask == 0, self._pad_id)
        types = {"token_type_ids": token_type_ids} if self._takes_types else {}
        exactly = torch.autocast(loop.device().type, enabled=False)
        with exactly if self._exact else nullcontext():
            logits = self.model(input_ids=ids, attention_mask=attention_mask, **types).logits
        return SimpleNamespace(class_logits=logits[:, self.order], hidden_states=(None,))


def load(
    name: str, labels: Sequence[str], window: int | None = None
) -> tuple[nn.Module, Tokenizer]:
    """Return a classifier that gives these labels in this order, and its tokenizer, which cuts texts to its window.

    `window`: tokens; None: as many as it takes, at most `checkpoint.LONGEST`. Raises: TeacherError, BackboneError.
    """
    model = checkpoint.model_of(
        name, AutoModelForSequenceClassification, "sequence-classification", "classify"
    )
    order = order_of(name, model.config, labels)
    tokenizer = checkpoint.tokenizer_of(name)
    checkpoint.check_vocabulary(name, tokenizer, model)
    tokenizer.enable_truncation(checkpoint.window_of(name, window, model))
    types = checkpoint.takes_types(model)
    return _Classifier(model, order, takes_types=types).eval(), tokenizer


def order_of(name: str, config: Any, labels: Sequence[str]) -> list[int]:
    """Return which of a checkpoint's logits is that of each label. Raises: TeacherError for other labels."""
    theirs: Mapping[int, str] = {int(i): str(label) for i, label in config.id2label.items()}
    if len(theirs) < 2 or getattr(config, "problem_type", None) in (
        "regression",
        "multi_label_classification",
    ):
        raise TeacherError(
            f"{name}: gives no single label of several ({config.problem_type or 'one output'}); give a checkpoint"
            f" that tells {', '.join(labels)} apart"
        )
    if getattr(config, "summary_type", None) == "last":
        raise TeacherError(
            f"{name}: model_type {config.model_type} reads the last token, which is padding in a batch; give a checkpoint"
            " of another family"
        )
    if len(theirs) == len(labels) and all(map(UNNAMED.fullmatch, theirs.values())):
        log.warning("%s: its labels have no names; taken to be %s", name, ", ".join(labels))
        return list(range(len(labels)))
    places = {label.casefold(): i for i, label in theirs.items()}
    wanted = [label.casefold() for label in labels]
    if len(places) != len(theirs) or set(places) != set(wanted):
        raise TeacherError(
            f"{name}: labels of another task: it gives {', '.join(theirs.values())}, and the study has"
            f" {', '.join(labels)}; give a checkpoint of these labels, or name the checkpoint's as `labels` of"
            " [task], where the data counts them from 0"
        )
    return [places[label] for label in wanted]


def _row(tokenizer: Tokenizer, example: LabelledText) -> Feature:
    found = tokenizer.encode(example.text, example.text_pair)
    ids, types = np.array(found.ids, np.int32), np.array(found.type_ids, np.int8)
    return Feature(ids, types, (), example.label)


def _logits(states: TeacherStates, rows: Sequence[int]) -> np.ndarray:  # (B, L)
    found: np.ndarray = states.logits[list(rows)].astype(np.float32)
    return found


def _accuracy(name: str, logits: np.ndarray, examples: Sequence[LabelledText]) -> float:
    """Return how often a teacher gives the label of the data.

    Raises: TeacherError where that is no better than one label for all: its labels mean something else.
    """
    gold = np.array([example.label for example in examples])
    accuracy = float((logits.argmax(-1) == gold).mean())
    ((most, n),) = Counter(gold.tolist()).most_common(1)
    log.info("%s: gives the label of %.1f %% of the training texts", name, 100 * accuracy)
    if len(gold) >= FEW and accuracy <= n / len(gold):
        raise TeacherError(
            f"{name}: labels of another task: it gives the label of {accuracy:.1%} of the training texts, and"
            f" always {examples[0].labels[most]!r} would give {n / len(gold):.1%}; give a checkpoint that was trained"
            " for these labels, or name `labels` of [task] in its order"
        )
    return accuracy
