"""One training of made-up rows, by as many processes as torchrun starts.

`torchrun --nproc-per-node N -m tests.training_together BACKBONE FOLDER KIND ...` writes the weights to
`FOLDER/KIND/weights.pt`. While there is a file `FOLDER/KIND/kill` the last process kills itself in the midst of
step KILLED_AT, as if its machine went away.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from optimizer.cli import command
from optimizer.data.items import Feature
from optimizer.models import student
from optimizer.models.lowrank import ThinWords, factors
from optimizer.models.magnitude import Magnitude
from optimizer.models.movement import Pruning
from optimizer.students import supernet
from optimizer.students.supernet import Supernet
from optimizer.study.config import DistillConfig, TrainConfig
from optimizer.study.space import Space
from optimizer.training import loop, processes, teacher_outputs
from optimizer.training.loop import Batch, Loss
from optimizer.training.losses import Imitation, label_loss
from optimizer.training.teacher_outputs import TeacherStates

KILLED_AT = 3
N_ROWS, WIDTH = 37, 64  # the last batch has one row: one process gets none
CONFIG = TrainConfig(epochs=1, batch_size=6, learning_rate=1e-3, average=0.5)
PRUNING: dict[str, Pruning | Magnitude] = {
    "pruned": Pruning("movement", ffn=None, heads=1, start=0.1, end=0.6),
    "sparse": Magnitude(0.5, start=0.1, end=0.6),
}
SPACE = Space(
    layers=((0, 1), (1,)),
    heads=(1, 2),
    ffn=(32, 96),
    embedding_bits=(4,),
    rank=(0, 64),
    keep=(1.0, 0.5),
    drop_after=(1,),
)


def rows() -> list[Feature]:
    """Return rows of 8 to 99 tokens, whose answer stands in the same place."""
    rng = np.random.default_rng(0)
    found = []
    for length in rng.integers(8, 100, N_ROWS):
        ids = rng.integers(5, 500, length).astype(np.int32)
        found.append(Feature(ids, (np.arange(length) > 4).astype(np.int8), ((5, 6),)))
    return found


@dataclass
class Dying:
    """A loss during which the last process is killed once, if there are several."""

    loss: Loss
    folder: Path
    steps: int = field(default=0)

    def __call__(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        self.steps += 1
        last = processes.rank() == processes.size() - 1 > 0
        if last and self.steps == KILLED_AT and (self.folder / "kill").exists():
            (self.folder / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.loss(model, batch)


def train(kind: str, backbone: str, folder: Path, at_once: int | None = None) -> float:
    """Train a `teacher`, a `student` of one, one that is `pruned` or `sparse`, or an `elastic` one; write its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.model_copy(update={"rows_at_once": at_once})
    model, loss = what(kind, backbone, folder)
    pruning = PRUNING.get(kind)
    found = loop.train(model, rows(), Dying(loss, folder), config, folder, 3, pruning=pruning)
    torch.save(model.state_dict(), folder / "weights.pt")
    return found


def what(kind: str, backbone: str, folder: Path) -> tuple[torch.nn.Module, Loss]:
    torch.manual_seed(1)
    base = student.load(backbone)
    if kind == "teacher":
        return base, partial(label_loss, answerability_weight=0.5)
    if not (folder / teacher_outputs.LOGITS).exists():
        teacher_outputs.write(student.load(backbone, answers=True), rows(), folder, WIDTH)
    states = TeacherStates.open(folder, rows(), WIDTH)
    if kind in PRUNING:
        PRUNING[kind].attach(base)
        return base, Imitation(states, DistillConfig())
    if kind == "student":
        return student.cut(base, (1,), 32), Imitation(states, DistillConfig())
    words = student.bert_of(base).embeddings.word_embeddings.weight
    thin = ThinWords(factors(words, 64), 4)
    net = Supernet(student.with_low_bit_embeddings(base, 4), thin, early=True, measure=False)
    ask = partial(supernet.ask_sandwich, SPACE, 1)
    return net, Imitation(states, DistillConfig(), ask)


def _run(args: argparse.Namespace) -> dict[str, float]:
    return {kind: train(kind, args.backbone, args.folder / kind) for kind in args.kinds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("backbone")
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="+")
    parser.set_defaults(run=_run)
    sys.exit(command.run(parser.parse_args()))
