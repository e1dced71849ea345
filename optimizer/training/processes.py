"""Processes that train one model together, started by torchrun; only this module knows torch.distributed.

The first process runs the command, and it alone reads and writes files. The others wait for its trainings:
for each they receive the model, the rows and the loss, and work on their share of every batch.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from gateway.errors import BertierError

log = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(days=365)  # of the others, while the first process evaluates
CHUNK_BYTES = 1 << 28  # of what is sent at once

_control: Any = None  # the process group of messages; gradients have the default group
_stopping = False


class ProcessLost(BertierError):
    """Another process of this training ended."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started. Raises: ProcessLost when they do not all come."""
    global _control
    on_gpu, local = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if on_gpu and local >= torch.cuda.device_count():
        raise BertierError(
            f"torchrun started more processes than there are GPUs here ({torch.cuda.device_count()}):"
            " give that number as --nproc-per-node"
        )
    if on_gpu:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        _control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as exc:
        raise ProcessLost(
            f"the processes of torchrun could not connect: {_first_line(exc)}"
        ) from exc
    yield  # after an error there is no farewell: torchrun ends the others
    dist.destroy_process_group()


def size() -> int:
    """Return how many processes train together; 1: this one alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; the first is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def send(job: object) -> None:
    """Give the other processes an object; None: there is no more work. Nothing to do for one alone."""
    if size() == 1:
        return
    buffer = io.BytesIO()
    torch.save(job, buffer)
    _broadcast(torch.tensor([buffer.tell()]))
    _broadcast_parts(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))


def receive() -> Any:
    """Return what the first process sends, on the CPU; waits for it as long as it takes."""
    n_bytes = torch.zeros(1, dtype=torch.int64)
    _broadcast(n_bytes)
    data = torch.empty(int(n_bytes), dtype=torch.uint8)
    _broadcast_parts(data)
    try:
        # The sender is this program's first process: nothing else can join the group.
        return torch.load(io.BytesIO(data.numpy().tobytes()), "cpu", weights_only=False)
    except (pickle.UnpicklingError, AttributeError, ImportError) as exc:
        raise BertierError(
            f"another version of this program runs on the first machine ({exc}): install the same version here"
        ) from exc


def summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes, the same in each. Raises: ProcessLost."""
    if size() > 1:
        with _mapped():
            dist.all_reduce(values)
    return values


@torch.no_grad()
def sum_gradients(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Sum the gradients over all processes, in place, and return the sum of the loss.

    In one message. Parameters without a gradient must be the same in all processes: those keep none.
    Raises: ProcessLost.
    """
    if size() == 1:
        return loss
    found = [p.grad for p in model.parameters() if p.grad is not None]
    flat = summed(torch.cat([*(g.reshape(-1) for g in found), loss.reshape(1).to(found[0].dtype)]))
    parts = torch.split_with_sizes(flat[:-1], [g.numel() for g in found])
    for grad, part in zip(found, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return flat[-1]


@contextmanager
def stopped_between_steps() -> Iterator[None]:
    """Let a SIGTERM take effect at the next `check`: torchrun sends it when another process ended."""
    if size() == 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check() -> None:
    """Raises: ProcessLost when this process is to stop."""
    if _stopping:
        raise ProcessLost(_lost("torchrun stops this one"))


def _note(_: int, __: FrameType | None) -> None:
    global _stopping
    _stopping = True


def _broadcast_parts(data: torch.Tensor) -> None:
    for first in range(0, len(data), CHUNK_BYTES):
        _broadcast(data[first : first + CHUNK_BYTES])


def _broadcast(tensor: torch.Tensor) -> None:
    with _mapped():
        dist.broadcast(tensor, 0, group=_control)


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:
        raise ProcessLost(_lost(_first_line(exc))) from exc


def _lost(why: str) -> str:
    return (
        f"a process of this training was lost ({why}); the steps that all finished are kept:"
        " run the same torchrun command again to go on"
    )


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n")[0].partition(". ")[0]
