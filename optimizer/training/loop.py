"""A training run: one pass over the rows, killed and resumed at any step.

Knows nothing of what is learned: the caller gives a loss. Writes a checkpoint every few minutes.
Legend: B rows of a batch, S tokens.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optimizer.data.question_sets import Feature
from optimizer.models.student import ModelError
from optimizer.study.config import TrainConfig
from optimizer.study.stages import CHECKPOINT, LOSSES, write_json

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 240.0
LOG_EVERY_S = 20.0
CURVE_POINTS = 200  # of losses.json
PREFETCHED = 4  # batches made ahead
POOL_BATCHES = 64  # rows are sorted by length inside pools of this many batches


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length; `rows` are their indices in the features."""

    input_ids: torch.Tensor  # (B, S) int64
    attention_mask: torch.Tensor  # (B, S) int64
    token_type_ids: torch.Tensor  # (B, S) int64
    starts: torch.Tensor  # (B, S) bool, first tokens of gold answers; position 0: unanswerable
    ends: torch.Tensor  # (B, S) bool, last tokens
    rows: tuple[int, ...]

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
    picked = [features[row] for row in rows]
    n_tokens = max(len(f.input_ids) for f in picked)
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

    return Batch(
        input_ids=on_device(ids),
        attention_mask=on_device(mask),
        token_type_ids=on_device(types),
        starts=on_device(starts),
        ends=on_device(ends),
        rows=tuple(rows),
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


def train(
    model: torch.nn.Module,
    features: Sequence[Feature],
    loss_of: Loss,
    config: TrainConfig,
    folder: Path,
    seed: int,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> float:
    """Train `model` in place and return the mean loss of the last tenth of the steps.

    Goes on from the checkpoint in `folder` when there is one.
    """
    torch.manual_seed(seed)
    plan = batches([len(f.input_ids) for f in features], config.batch_size, config.epochs, seed)
    model.to(device()).train()
    optimizer, schedule = _optimizer(model, config, len(plan))
    average = _Average.of(model, config.average)
    run = _Run(folder / CHECKPOINT, model, optimizer, schedule, average)
    losses = _Losses(run.resume())
    saved = time.monotonic()
    progress = _Progress(folder.name, len(losses), len(plan))
    for batch in _prefetched(features, plan[len(losses) :]):
        losses.add(_step(model, batch, loss_of, optimizer, schedule))
        average.update(model)
        progress.step(losses)
        if time.monotonic() - saved >= checkpoint_every_s:
            run.save(losses.all())
            _write_curve(folder, losses.all(), len(plan))
            saved = time.monotonic()
    average.copy_to(model)
    found = losses.all()
    _write_curve(folder, found, len(plan))
    run.path.unlink(missing_ok=True)
    return float(np.mean(found[-max(1, len(found) // 10) :]))


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
    taken_s = []
    for rows in [plan[len(plan) // 2], *plan]:  # the first one warms up
        began = time.perf_counter()
        batch = batch_of(features, rows)
        _step(model, batch, loss_of, optimizer, schedule).item()  # waits for a GPU
        taken_s.append((time.perf_counter() - began) / size)
    return float(np.mean(taken_s[1:]))


def _prefetched(features: Sequence[Feature], plan: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Yield the batches, each made while the one before is trained on."""
    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[Batch]] = deque()
        for rows in plan:
            coming.append(pool.submit(batch_of, features, rows))
            if len(coming) > PREFETCHED:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return trained weights. Raises: ModelError when they are not there yet."""
    if not path.exists():
        raise ModelError(f"{path}: not trained yet; 'bertier-optimize distill' or 'run' does that")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def _write_curve(folder: Path, losses: Sequence[float], n_steps: int) -> None:
    """Write the losses so far for people, in few points; nothing here reads them again."""
    width = max(1, -(-n_steps // CURVE_POINTS))
    parts = [losses[i : i + width] for i in range(0, len(losses), width)]
    points = [
        {"step": i * width + len(part), "loss": round(float(np.mean(part)), 5)}
        for i, part in enumerate(parts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / LOSSES, {"steps": n_steps, "points": points})


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
    batch: Batch,
    loss_of: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> torch.Tensor:
    with autocast():
        loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def autocast() -> torch.autocast:
    """Return the context in which models run: bfloat16 where it is faster."""
    return torch.autocast(device().type, torch.bfloat16, enabled=_has_bf16())


def _has_bf16() -> bool:
    """Emulated bfloat16 is three times slower than float32: use it only where the chip has it."""
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
class _Run:
    """What a killed run needs to go on."""

    path: Path
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: _Average

    def save(self, losses: list[float]) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "average": self.average.weights,
            "losses": losses,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)

    def resume(self) -> list[float]:
        """Return the losses of the steps that were made before."""
        if not self.path.exists():
            return []
        state = torch.load(self.path, map_location=device(), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.weights = state["average"]
        self.average.steps = len(state["losses"])
        torch.set_rng_state(state["torch_rng"].cpu())
        log.info("%s: going on from step %d", self.path.parent.name, len(state["losses"]))
        losses: list[float] = state["losses"]
        return losses
