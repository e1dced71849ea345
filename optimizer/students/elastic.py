"""An elastic student of a study: trained once; every candidate of its space is a slice of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from optimizer.models import lowrank, student, widths
from optimizer.models.weights import GraphShape
from optimizer.onnx import export
from optimizer.students import supernet
from optimizer.students.distillation_batches import DistillationBatches
from optimizer.students.supernet import Supernet
from optimizer.study import stages
from optimizer.study.config import ElasticConfig
from optimizer.study.space import Candidate
from optimizer.training import loop

WEIGHTS = "elastic.pt"

# Knobs of its space that do not change its training.
_UNTRAINED: Any = {
    "name": True,
    "members": True,
    "finish": True,
    "space": {"embedding_bits", "precision", "teacher_layers"},
}

_INSIDE = {"intermediate", "intermediate_weight"}  # keys of [distill] that slices do not have


@dataclass(frozen=True)
class Elastic:
    """One elastic student, trained or about to be."""

    distillation: DistillationBatches
    config: ElasticConfig
    folder: Path

    @property
    def file(self) -> Path:
        """Its trained weights, fetched from the store if they are there alone."""
        return stages.fetch(self.folder, self.inputs) / WEIGHTS

    def check(self) -> None:
        """Fail before hours of training. Raises: ModelError when its base cannot be loaded."""
        base = self.config.base
        if base is not None:
            labels = self.distillation.largest.n_labels
            student.check_whole(base, student.load(base, labels=labels))

    @cached_property
    def graph_shape(self) -> GraphShape:
        """Its shape as a graph, known before it or its teacher is trained."""
        study = self.distillation.config
        start = study.student_weights or study.finished or study.encoder
        n_labels = self.distillation.largest.n_labels
        return export.graph_shape_of(student.load(self.config.base or start, labels=n_labels))

    def train(self) -> dict[str, Any]:
        """Train every candidate of its space at once."""
        return stages.run_stage(self.folder, self.inputs(), self._train)

    def inputs(self) -> dict[str, Any]:
        """Return everything that its training depends on."""
        return {
            **self.distillation.inputs(),
            "elastic": self.config.model_dump(exclude=_UNTRAINED),
            "distill": self.distillation.config.distill.model_dump(exclude=_INSIDE),
        }

    def _train(self) -> dict[str, Any]:
        net, how = self._new(to_train=True), self.config.train
        space = self.config.space.within(net.n_layers)
        for layers in space.subsets:
            net.check(replace(space.largest, layers=layers))
        net.check(space.smallest)
        loss = self.distillation.imitation(
            net.model, partial(supernet.ask_sandwich, space, self.config.random)
        )
        rows, seed = self.distillation.rows, self.distillation.config.seed
        final = loop.train(net, rows, loss, how, self.folder, seed)
        torch.save(net.state_dict(), self.folder / WEIGHTS)
        return {"final_loss": final, "parameters": student.parameters_of(net.model)}

    def _new(self, *, to_train: bool = False) -> Supernet:
        """Return an untrained network.

        `to_train`: measure on the training rows which words and neurons matter. Not needed when trained
        weights replace all of them.
        """
        base, space, bits = self._base(), self.config.space, self.config.embedding_bits
        thin = None
        if space.max_rank:
            words = student.bert_of(base).embeddings.word_embeddings.weight
            found = self.distillation.word_counts if to_train else None
            thin = lowrank.ThinWords(lowrank.factors(words, space.max_rank, found), bits)
        probe = self.distillation.probe if to_train else None
        quantized = student.with_low_bit_embeddings(base, bits)
        return Supernet(
            quantized, thin, early=space.drops, narrow=space.narrows, probe=probe, measure=to_train
        )

    def _base(self) -> PreTrainedModel:
        base = self.config.base
        model = self.distillation.checkpoint(base) if base else self.distillation.start()
        student.check_whole(base or "weights", model)
        return model

    @cached_property
    def net(self) -> Supernet:
        """The trained network. Raises: ModelError when it is not trained, or does not fit the study."""
        weights = loop.weights(self.file)
        net = self._new()
        try:
            net.load_state_dict(weights)
        except RuntimeError as exc:
            raise student.ModelError(
                f"{self.file}: does not fit this study's elastic student: an older version or other knobs"
                f" wrote it; remove {self.folder} and train again"
            ) from exc
        return net

    @cached_property
    def blank(self) -> Supernet:
        """The network without its training: its slices have the right shape, and no more."""
        return self._new()

    def slice(self, candidate: Candidate, *, blank: bool = False) -> PreTrainedModel:
        """Return a candidate cut out of it, words rounded to its bits; `blank`: its shape alone."""
        net = self.blank if blank else self.net
        net.check(candidate)
        model, thin = net.cut(candidate), net.thin
        narrow_words = bool(candidate.hidden and not candidate.rank)  # rounded from rounded ones
        if narrow_words or candidate.embedding_bits != self.config.embedding_bits:
            words = thin.exact(candidate.rank) if thin and candidate.rank else self._words
            words = words[:, widths.columns_of(model)] if narrow_words else words
            student.round_words(model, words, candidate.embedding_bits)
        return model

    @cached_property
    def _words(self) -> torch.Tensor:
        """The word embeddings (V, H) that its own were rounded from."""
        words: torch.Tensor = student.bert_of(self._base()).embeddings.word_embeddings.weight
        return words.detach()
