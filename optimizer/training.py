"""A training run: one pass over the rows, killed and resumed at any step.

Knows nothing of what is learned: the caller gives a loss. Writes a checkpoint every few minutes.
Legend: B rows of a batch, S tokens.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optimizer.config import TrainConfig
from optimizer.data import Feature
from optimizer.models.student import ModelError
from optimizer.stages import CHECKPOINT, LOSSES, write_json

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 240.0
LOG_EVERY_S = 20.0
CURVE_POINTS = 200  # of losses.json
POOL_BATCHES = 64  # rows are sorted by length inside pools of this many batches


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length; `rows` are their indices in the features."""

    input_ids: torch.Tensor  # (B, S) int64
    attention_mask: torch.Tensor  # (B, S) int64
    token_type_ids: torch.Tensor  # (B, S) int64
    start: torch.Tensor  # (B,) int64
    end: torch.Tensor  # (B,) int64
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
    ids, mask, types = (np.zeros((len(picked), n_tokens), np.int64) for _ in range(3))
    for i, feature in enumerate(picked):
        n = len(feature.input_ids)
        ids[i, :n], mask[i, :n], types[i, :n] = feature.input_ids, 1, feature.token_type_ids
    start = np.array([f.start for f in picked])
    end = np.array([f.end for f in picked])

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device())

    return Batch(
        input_ids=on_device(ids),
        attention_mask=on_device(mask),
        token_type_ids=on_device(types),
        start=on_device(start),
        end=on_device(end),
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
    run = _Run(folder / CHECKPOINT, model, optimizer, schedule)
    step, losses = run.resume()
    saved = time.monotonic()
    tell = _Progress(folder.name, step, len(plan))
    while step < len(plan):
        losses.append(_step(model, batch_of(features, plan[step]), loss_of, optimizer, schedule))
        step += 1
        tell.step(step, losses)
        if time.monotonic() - saved >= checkpoint_every_s:
            run.save(step, losses)
            _write_curve(folder, losses, len(plan))
            saved = time.monotonic()
    _write_curve(folder, losses, len(plan))
    run.path.unlink(missing_ok=True)
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


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
) -> float:
    with autocast():
        loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


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


class _Progress:
    """Says now and then how far a run has come, from the step at which it went on."""

    def __init__(self, name: str, first: int, total: int) -> None:
        self._name, self._first, self._total = name, first, total
        self._began = self._said = time.monotonic()

    def step(self, step: int, losses: Sequence[float]) -> None:
        now = time.monotonic()
        if now - self._said <= LOG_EVERY_S and step < self._total:
            return
        self._said = now
        left_min = (now - self._began) / (step - self._first) * (self._total - step) / 60
        told = (self._name, step, self._total, float(np.mean(losses[-100:])), left_min)
        log.info("%s: step %d/%d loss %.3f, %.0f min left", *told)


@dataclass(frozen=True, slots=True)
class _Run:
    """What a killed run needs to go on."""

    path: Path
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def save(self, step: int, losses: list[float]) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "step": step,
            "losses": losses,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)

    def resume(self) -> tuple[int, list[float]]:
        if not self.path.exists():
            return 0, []
        state = torch.load(self.path, map_location=device(), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["torch_rng"].cpu())
        log.info("%s: going on from step %d", self.path.parent.name, state["step"])
        return state["step"], state["losses"]
