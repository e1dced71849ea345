"""`bertier-optimize engines`: compares inference engines and kinds of INT8 on this processor."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optimizer.benchmarks.results import Interval

if TYPE_CHECKING:
    from optimizer.benchmarks.engines.contest import Result, Task
    from optimizer.benchmarks.engines.openers import EngineInput, Opened

SECONDS = 20.0
QUESTIONS = 400
TOKENS = (64, 128, 192, 384)
log = logging.getLogger(__name__)


def add(commands: Any) -> None:
    """Register the command."""
    text = "compare all installed engines on one checkpoint: speed on one thread, and F1"
    command = commands.add_parser("engines", help=text, description=text)
    command.add_argument("--checkpoint", required=True, help="folder or Hugging Face id")
    command.add_argument(
        "--tokenizer", help="checkpoint of the tokenizer; default: the same checkpoint"
    )
    command.add_argument(
        "--data",
        help="SQuAD-format file: its training split is used to calibrate, its search split to score;"
        " default: measure speed only, calibrated on random tokens",
    )
    command.add_argument("--limit", type=int, default=QUESTIONS, help="questions to answer")
    command.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="window lengths")
    command.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="seconds for each length; use more on a busy host",
    )
    command.add_argument(
        "--only", nargs="+", default=(), help="run only engines whose names begin with one of these"
    )
    command.add_argument(
        "--folder", type=Path, help="keep the engines' files in this folder and reuse them"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print a table and return all that was measured."""
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        return _run(args, folder)


def _run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from optimizer.benchmarks.engines import contest
    from optimizer.onnx import profile  # and with it torch: seconds

    job, task = _prepare(args, folder)
    opened, missing = _open(job, tuple(args.only))
    found = contest.run(opened, task)
    console = Console()
    console.print(speed_table(found), answers_table(found))
    for name, why in missing.items():
        console.print(f"{name}: {why}", markup=False, highlight=False)
    return {
        "checkpoint": args.checkpoint,
        "data": args.data,
        "calibrated_on": len(job.calibration) if args.data else None,  # windows; None: random
        "host": asdict(profile.here()),
        "engines": {name: asdict(result) for name, result in found.items()},
        "missing": missing,
    }


def _prepare(args: argparse.Namespace, folder: Path) -> tuple[EngineInput, Task]:
    """Return what engines are opened with, and what they are asked."""
    from gateway.qa.codec import SpanEncoder
    from optimizer.benchmarks.engines import contest, openers
    from optimizer.models import student, tokenizer
    from optimizer.onnx import export

    model = student.load(args.checkpoint, answers=True)
    tokenizer.save(args.tokenizer or args.checkpoint, folder)
    encoder = SpanEncoder.from_file(folder / tokenizer.FILE)
    vocabulary = model.config.vocab_size
    calibration, asked = contest.parts(args.data, args.limit) if args.data else ([], [])
    windows = [encoder.encode(e.as_question()) for e in calibration]
    windows = windows or [export.random_windows(4, n, vocabulary) for n in args.tokens]
    feeds = [feed for found in windows for feed in export.feeds(found)]
    task = contest.Task(encoder, vocabulary, args.data, asked, args.tokens, args.seconds)
    return openers.EngineInput(model, folder, feeds), task


def _open(job: EngineInput, only: tuple[str, ...]) -> tuple[dict[str, Opened], dict[str, str]]:
    """Return the engines that can run here, what ships first; and why others cannot."""
    from optimizer.benchmarks.engines.openers import ENGINES, SHIPPED, Unavailable

    opened, missing = {}, {}
    for engine in sorted(ENGINES, key=lambda e: e.name != SHIPPED):
        if engine.name != SHIPPED and only and not engine.name.startswith(only):
            continue
        log.info("opening %s", engine.name)
        try:
            opened[engine.name] = engine.open(job)
        except Unavailable as exc:
            missing[engine.name] = str(exc)
    return opened, missing


def speed_table(results: Mapping[str, Result]) -> Table:
    """Return ms of every engine at every length, and how many times as fast as the first that is."""
    lengths = [str(latency.tokens) for latency in next(iter(results.values())).latency]
    title = "ms of processor time at so many tokens, and times as fast as the first"
    found = Table("one thread", *lengths, title=title, box=SIMPLE_HEAD)
    for name, result in results.items():
        cells = (f"{t.cpu_min_ms:.1f} {t.speed_up:.2f}x" for t in result.latency)
        found.add_row(name, *cells)
    return found


def answers_table(results: Mapping[str, Result]) -> Table:
    """Return size, what batch mates change, and F1 in points, beside the first's."""
    columns = ("engine", "MB", "batch", "F1", "forced F1")
    title = "batch: change of a logit by others in its batch; F1 less the first's, 95 %"
    found = Table(*columns, title=title, box=SIMPLE_HEAD)
    for name, result in results.items():
        size, pair = f"{result.size_bytes / 1e6:.1f}", result.quality
        scores = ("-", "-")
        if pair:
            forced = pair.forced_f1[0] if pair.forced_f1 else None
            scores = _score(pair.f1[0], pair.f1_difference), _score(forced, pair.forced_difference)
        found.add_row(name, size, f"{result.batch_variance:.4f}", *scores)
    return found


def _score(f1: float | None, less: Interval | None) -> str:
    if f1 is None or less is None:
        return "-"
    mean, low, high = (100 * value for value in (less.mean, less.low, less.high))
    return f"{100 * f1:.1f}\n{mean:+.1f} ({low:+.1f}..{high:+.1f})"
