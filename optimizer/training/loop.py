"""A training run: one pass over the rows, killed and resumed at any step.

Knows nothing of what is learned: the caller gives a loss. Writes a checkpoint every few minutes.
A batch is cut into a share for each process, and a share into parts that fit into memory: the gradients
are summed, so the same weights are learned. Legend: B rows of a part, S tokens of the batch's longest row.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from optimizer.data.items import Feature
from optimizer.models.bert import as_student
from optimizer.models.magnitude import Magnitude
from optimizer.models.movement import Pruning
from optimizer.models.student import ModelError
from optimizer.study import workers
from optimizer.study.config import TrainConfig
from optimizer.study.stages import CHECKPOINT, LOSSES, write_json
from optimizer.training import processes
from optimizer.training.processes import ProcessLost

log = logging.getLogger(__name__)

FLOAT32 = "BERTIER_FLOAT32"  # environment variable: no bfloat16, whatever the chip has
CHECKPOINT_EVERY_S = 240.0
LOG_EVERY_S = 20.0
CURVE_POINTS = 200  # of losses.json
PREFETCHED = 4  # batches made ahead
SEED_STEPS = 10_000_000  # more than a run has steps: two seeds of a study draw differently
POOL_BATCHES = 64  # rows are sorted by length inside pools of this many batches


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length: a batch, or a part of one."""

    input_ids: torch.Tensor  # (B, S) int64
    attention_mask: torch.Tensor  # (B, S) int64
    token_type_ids: torch.Tensor  # (B, S) int64
    starts: torch.Tensor  # (B, S) bool, first tokens of gold answers; position 0: unanswerable
    ends: torch.Tensor  # (B, S) bool, last tokens
    rows: tuple[int, ...]  # indices in the features
    share: float = 1.0  # of the batch's rows; 0: the rows are counted elsewhere
    seed: int = 0  # of what is drawn at random for a batch, the same in all its parts
    labels: torch.Tensor | None = None  # (B,) int64 of a classifier, whose rows have no spans

    def inputs(self) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }


Loss = Callable[[torch.nn.Module, Batch], torch.Tensor]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_of(features: Sequence[Feature], rows: Sequence[int]) -> Batch:
    """Return the rows as one padded batch on the training device."""
    return _part_of(features, rows, rows, seed=0)


def _part_of(
    features: Sequence[Feature], rows: Sequence[int], part: Sequence[int], *, seed: int
) -> Batch:
    """Return a part of the rows, padded to the longest of all; empty: the first row, without a share."""
    share = len(part) / len(rows)
    part = part or rows[:1]
    picked = [features[row] for row in part]
    n_tokens = max(len(features[row].input_ids) for row in rows)
    if device().type == "cuda":  # its matrix products and fused attention want multiples of 8
        n_tokens += -n_tokens % 8
    ids, mask, types = (np.zeros((len(picked), n_tokens), np.int64) for _ in range(3))
    starts, ends = (np.zeros((len(picked), n_tokens), np.bool_) for _ in range(2))
    for i, feature in enumerate(picked):
        n = len(feature.input_ids)
        ids[i, :n], mask[i, :n], types[i, :n] = feature.input_ids, 1, feature.token_type_ids
        for first, last in feature.spans:
            starts[i, first] = ends[i, last] = True

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device(), non_blocking=True)

    labels = np.array([-1 if f.label is None else f.label for f in picked], np.int64)
    return Batch(
        input_ids=on_device(ids),
        attention_mask=on_device(mask),
        token_type_ids=on_device(types),
        starts=on_device(starts),
        ends=on_device(ends),
        rows=tuple(part),
        share=share,
        seed=seed,
        labels=on_device(labels) if labels.min() >= 0 else None,
    )


def batches(lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """Return the row indices of every batch of the run, in order; the same for the same seed."""
    rng = random.Random(seed)
    plan: list[list[int]] = []
    per_epoch = -(-len(lengths) // batch_size)
    while len(plan) < round(per_epoch * epochs):
        rows = list(range(len(lengths)))
        rng.shuffle(rows)
        pool = batch_size * POOL_BATCHES
        epoch = []
        for at in range(0, len(rows), pool):
            ordered = sorted(rows[at : at + pool], key=lambda row: lengths[row])
            epoch += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
        rng.shuffle(epoch)
        plan += epoch
    return plan[: round(per_epoch * epochs)]


def parts_of(rows: Sequence[int], rank: int, size: int, at_once: int | None) -> list[Sequence[int]]:
    """Return a process's rows of a batch, in parts of at most `at_once`; as many parts in each process."""
    mine = rows[rank::size]
    most = -(-len(rows) // size)
    n_parts = -(-most // (at_once or most))
    return [mine[i::n_parts] for i in range(n_parts)]


def train(
    model: torch.nn.Module,
    features: Sequence[Feature],
    loss_of: Loss,
    config: TrainConfig,
    folder: Path,
    seed: int,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    pruning: Pruning | Magnitude | None = None,
) -> float:
    """Train `model` in place and return the mean loss of the last tenth of the steps.

    Goes on from the checkpoint in `folder` when there is one. `pruning`: of the masks that the model has.
    """
    checkpoint = folder / CHECKPOINT
    state = torch.load(checkpoint, device(), weights_only=True) if checkpoint.exists() else None
    job = _Job(model, features, loss_of, config, seed, state, pruning)
    if processes.size() > 1:
        processes.send(replace(job, model=_portable(model)))
    run = _Run.of(job)
    average = _Average.of(model, config.average)
    losses = _Losses([] if state is None else state["losses"])
    if state is not None:
        average.resume(state["average"], len(losses))
        torch.set_rng_state(state["torch_rng"].cpu())
        log.info("%s: going on from step %d", folder.name, len(losses))
    saved = time.monotonic()
    began = saved - (0.0 if state is None else state.get("seconds", 0.0))
    progress = _Progress(folder.name, len(losses), run.n_steps)
    with processes.stopped_between_steps():
        try:
            for loss in run.steps():
                losses.add(loss)
                average.update(model)
                progress.step(losses)
                if time.monotonic() - saved >= checkpoint_every_s:
                    seconds = time.monotonic() - began
                    run.save(checkpoint, losses.all(), average, seconds)
                    _write_curve(folder, losses.all(), run.n_steps, seconds)
                    saved = time.monotonic()
                processes.check()
        except ProcessLost:
            run.save(checkpoint, losses.all(), average, time.monotonic() - began)
            raise
    average.copy_to(model)
    found = losses.all()
    _write_curve(folder, found, run.n_steps, time.monotonic() - began)
    checkpoint.unlink(missing_ok=True)
    return float(np.mean(found[-max(1, len(found) // 10) :]))


def _portable(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy for another process, without the hooks by which transformers gets hidden states."""
    made = copy.deepcopy(model)
    for module in made.modules():
        module._forward_hooks.clear()  # noqa: SLF001 - closures of transformers, which cannot be sent
    return as_student(made) if isinstance(made, PreTrainedModel) else made


def follow() -> None:
    """Take part in the trainings of the first process, until it has no more. Raises: ProcessLost."""
    while (job := processes.receive()) is not None:
        with workers.working():
            for _ in _Run.of(job).steps():
                pass


def seconds_a_row(
    model: torch.nn.Module,
    features: Sequence[Feature],
    loss_of: Loss,
    config: TrainConfig,
    steps: int = 3,
) -> float:
    """Return what a row takes in a training step on this host: the mean of short, middle and long rows.

    Trains `model` a few steps, so it is of no use afterwards.
    """
    ordered = sorted(range(len(features)), key=lambda row: len(features[row].input_ids))
    size = min(config.batch_size, len(ordered))
    firsts = [round(i * (len(ordered) - size) / max(1, steps - 1)) for i in range(steps)]
    plan = [ordered[first : first + size] for first in firsts]
    model.to(device()).train()
    optimizer, schedule = _optimizer(model, config, len(plan) + 1)
    taken_s: list[float] = []
    for rows in [plan[len(plan) // 2], *plan]:  # the first one warms up
        began = time.perf_counter()
        batch = _part_of(features, rows, rows, seed=len(taken_s))
        _step(model, [batch], loss_of, optimizer, schedule).item()  # waits for a GPU
        taken_s.append((time.perf_counter() - began) / size)
    return float(np.mean(taken_s[1:]))


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return trained weights. Raises: ModelError when they are not there yet."""
    if not path.exists():
        raise ModelError(f"{path}: not trained yet; 'bertier-optimize distill' or 'run' does that")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def _write_curve(folder: Path, losses: Sequence[float], n_steps: int, seconds: float) -> None:
    """Write the losses so far, in few points, and the seconds that all steps took, before a kill too."""
    width = max(1, -(-n_steps // CURVE_POINTS))
    parts = [losses[i : i + width] for i in range(0, len(losses), width)]
    points = [
        {"step": i * width + len(part), "loss": round(float(np.mean(part)), 5)}
        for i, part in enumerate(parts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    curve = {"steps": n_steps, "seconds": round(seconds, 3), "points": points}
    write_json(folder / LOSSES, curve)


def _optimizer(
    model: torch.nn.Module, config: TrainConfig, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for _, p in trained if p.ndim > 1]
    plain = [p for _, p in trained if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    warmup = max(1, round(n_steps * config.warmup))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, max(0.0, (n_steps - step) / max(1, n_steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _step(
    model: torch.nn.Module,
    parts: Sequence[Batch],
    loss_of: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    prune: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Make one step from the parts of a batch; return the loss of the whole batch."""
    found = []
    for part in parts:
        with autocast():
            loss = loss_of(model, part) * part.share
        loss.backward()  # type: ignore[no-untyped-call]
        found.append(loss.detach())
    whole = processes.sum_gradients(model, torch.stack(found).sum())
    if prune is not None:
        prune()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return whole


def autocast() -> torch.autocast:
    """Return the context in which models run: bfloat16 where it is faster."""
    return torch.autocast(device().type, torch.bfloat16, enabled=_has_bf16())


def _has_bf16() -> bool:
    """Emulated bfloat16 is three times slower than float32: use it only where the chip has it."""
    if os.environ.get(FLOAT32):
        return False
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return _cpu_flag("avx512_bf16")


def _cpu_flag(flag: str) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and f" {flag} " in cpuinfo.read_text()


class _Losses:
    """The losses of all steps; those of the last ones stay on the device until somebody asks."""

    def __init__(self, before: Sequence[float]) -> None:
        self._known = list(before)
        self._recent: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._known) + len(self._recent)

    def add(self, loss: torch.Tensor) -> None:
        self._recent.append(loss)

    def all(self) -> list[float]:
        if self._recent:
            self._known += torch.stack(self._recent).tolist()
            self._recent = []
        return self._known


class _Average:
    """An exponential moving average of the trained weights; a decay of 0 keeps none.

    Source: Tarvainen & Valpola 2017, "Mean teachers", section 2; the first steps weigh less, as in Adam.
    """

    def __init__(self, decay: float, weights: list[torch.Tensor]) -> None:
        self._decay = decay
        self.weights = weights
        self.steps = 0

    @classmethod
    def of(cls, model: torch.nn.Module, decay: float) -> _Average:
        return cls(decay, [p.detach().clone() for p in _trained(model)] if decay else [])

    def resume(self, weights: list[torch.Tensor], steps: int) -> None:
        self.weights, self.steps = weights, steps

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        if not self.weights:
            return
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.weights, [p.detach() for p in _trained(model)], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        for mean, weight in zip(self.weights, _trained(model) if self.weights else (), strict=True):
            weight.copy_(mean)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


class _Progress:
    """Says now and then how far a run has come, from the step at which it went on."""

    def __init__(self, name: str, first: int, total: int) -> None:
        self._name, self._first, self._total = name, first, total
        self._began = self._said = time.monotonic()

    def step(self, losses: _Losses) -> None:
        now, step = time.monotonic(), len(losses)
        if now - self._said <= LOG_EVERY_S and step < self._total:
            return
        self._said = now
        left_min = (now - self._began) / (step - self._first) * (self._total - step) / 60
        recent = float(np.mean(losses.all()[-100:]))
        log.info(
            "%s: step %d/%d loss %.3f, %.0f min left",
            *(self._name, step, self._total, recent, left_min),
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """All that a process needs for its share of a training run."""

    model: torch.nn.Module
    features: Sequence[Feature]
    loss_of: Loss
    config: TrainConfig
    seed: int
    state: dict[str, Any] | None  # a checkpoint; None: from the start
    pruning: Pruning | Magnitude | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """A training run as every process of it goes through it."""

    job: _Job
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    plan: list[list[int]]  # the rows of every batch

    @classmethod
    def of(cls, job: _Job) -> _Run:
        """Return the run at the step of the job's checkpoint."""
        torch.manual_seed(job.seed + processes.rank())  # of dropout
        lengths = [len(f.input_ids) for f in job.features]
        plan = batches(lengths, job.config.batch_size, job.config.epochs, job.seed)
        job.model.to(device()).train()
        optimizer, schedule = _optimizer(job.model, job.config, len(plan))
        if job.state is not None:
            job.model.load_state_dict(job.state["model"])
            optimizer.load_state_dict(job.state["optimizer"])
            schedule.load_state_dict(job.state["schedule"])
        return cls(job, optimizer, schedule, plan)

    @property
    def n_steps(self) -> int:
        return len(self.plan)

    def steps(self) -> Iterator[torch.Tensor]:
        """Make the steps that are left, and yield the loss of each."""
        job = self.job
        first = 0 if job.state is None else len(job.state["losses"])
        for step, parts in enumerate(self._prefetched(first), first + 1):
            prune = None
            if job.pruning is not None:
                prune = partial(job.pruning.step, job.model, step / self.n_steps)
            yield _step(job.model, parts, job.loss_of, self.optimizer, self.schedule, prune)

    def _prefetched(self, first: int) -> Iterator[list[Batch]]:
        """Yield this process's parts of each batch, made while the ones before are trained on."""
        with ThreadPoolExecutor(1) as pool:
            coming: deque[Future[list[Batch]]] = deque()
            for step in range(first, len(self.plan)):
                coming.append(pool.submit(self._parts, step))
                if len(coming) > PREFETCHED:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _parts(self, step: int) -> list[Batch]:
        rows, at_once = self.plan[step], self.job.config.rows_at_once
        parts = parts_of(rows, processes.rank(), processes.size(), at_once)
        seed = self.job.seed * SEED_STEPS + step
        return [_part_of(self.job.features, rows, part, seed=seed) for part in parts]

    def save(self, path: Path, losses: list[float], average: _Average, seconds: float) -> None:
        """Write what a killed run needs to go on."""
        state: dict[str, Any] = {
            "model": self.job.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "average": average.weights,
            "losses": losses,
            "seconds": seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)
