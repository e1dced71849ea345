"""`bertier-loadtest soak`: hours of steady load with switches, killed model processes and long papers."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bertier import ApiError, Client, Overloaded, Retries
from bertier.questions import AnswerArguments
from gateway.catalog.store import CATALOG
from gateway.triton_server.model_processes import STUB
from loadtest.faults import soak
from loadtest.faults.soak import Event, Sample, SoakRequest, Verdict
from loadtest.faults.soak_chart import picture
from loadtest.sample import questions
from loadtest.stack import Stack, fresh_stack, hardware
from optimizer.data.question_sets import Example

CALLERS = 4
EVERY_S = 2.0  # between samples
EVENTS = 6  # of each kind in a run
LONG_SHARE = 0.02
PAPER_CHARS = 20_000
WINDOW_CHARS = (150, 300, 450, 700, 950, 1_200, 1_500)  # of contexts for windows of every length
SETTLE_S = 15.0  # until background work of the last requests is over
N_QUESTIONS, N_PAPERS = (
    200,
    20,
)  # of the load, in all: what is drawn again and again leaves nothing new
WARM_UP_MS = 60_000.0  # latency target of a request before the run
WARM_UP_TIMEOUT_S = 4 * WARM_UP_MS / 1e3  # as long as the gateway may take for it
SWITCH_S = 120.0  # until a catalog is served
SETTINGS = {
    "BERTIER_CACHE_BYTES": "20000000",
    "BERTIER_CACHE_TTL_MS": "20000",  # most requests ask a model
    "BERTIER_FEEDBACK_REQUESTS": str(N_QUESTIONS),
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "steady load with catalog switches, killed model processes and long papers: what leaks?"
    command = commands.add_parser("soak", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    command.add_argument("--minutes", type=float, default=60.0)
    command.add_argument("--rate", type=float, default=4.0, help="requests/s in all")
    command.add_argument("--backend", choices=("triton", "embedded"), default="triton")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument(
        "--folder", type=Path, default=Path("runs/soak"), help="of soak.json and soak.svg"
    )
    command.set_defaults(run=_soak)


def _soak(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bertier-soak-") as folder:
        repository = Path(folder) / "models"
        shutil.copytree(args.model_repository, repository)
        with _settings(), fresh_stack(repository, "--backend", args.backend) as stack:
            run = Run(stack, repository, args.minutes * 60, args.rate, args.seed)
            found = run.play()
    _show(found, run)
    result = {
        "minutes": args.minutes,
        "rate": args.rate,
        "backend": args.backend,
        "requests": len(run.outcomes),
        "switches": run.switches,
        "killed": run.killed,
        "host": hardware(),
        "verdicts": [asdict(v) for v in found],
    }
    _write(args.folder, run, result)
    return all(v.holds for v in found), result


class Run:
    """One soak: load in threads, events and samples in this one."""

    def __init__(
        self, stack: Stack, repository: Path, length_s: float, rate: float, seed: int
    ) -> None:
        self._stack, self._repository = stack, repository
        self._length_s, self._rate = length_s, rate
        self._random = random.Random(seed)
        self._examples = questions(None, N_QUESTIONS)
        self._papers = [self._paper() for _ in range(N_PAPERS)]
        self._began = time.monotonic()
        self.outcomes: list[SoakRequest] = []
        self.samples: list[Sample] = []
        self.events: list[Event] = []
        self.switches = self.killed = 0

    def play(self) -> list[Verdict]:
        self._warm_up()
        before = self._idle()
        self._began = time.monotonic()
        callers = [threading.Thread(target=self._call, args=(n,)) for n in range(CALLERS)]
        for caller in callers:
            caller.start()
        self._watch()
        for caller in callers:
            caller.join()
        return soak.verdicts(self.samples, self.outcomes, before, self._idle())

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began

    def _watch(self) -> None:
        """Sample until the end, and let something happen in between, a switch and a kill in turns."""
        due = [self._length_s * (i + 1) / (2 * EVENTS + 1) for i in range(2 * EVENTS)]
        while self._now_s < self._length_s:
            self.samples.append(self._sample())
            if due and self._now_s >= due[0]:
                due.pop(0)
                self._switch() if len(due) % 2 else self._kill()
            time.sleep(EVERY_S)

    def _call(self, number: int) -> None:
        rng = random.Random(self._random.random() + number)
        with Client(self._stack.http_url, retries=Retries(attempts=1)) as client:
            while self._now_s < self._length_s:
                time.sleep(rng.expovariate(self._rate / CALLERS))
                self._ask(client, rng)

    def _ask(self, client: Client, rng: random.Random) -> None:
        example: Example = rng.choice(self._examples)
        long = rng.random() < LONG_SHARE
        context = rng.choice(self._papers) if long else example.context
        at_s = self._now_s
        try:
            answer = client.answer(
                example.question, context, slo_class="batch" if long else "standard"
            )
            outcome = "met" if answer.slo.met else "violated"
        except Overloaded:
            outcome = "refused"
        except ApiError as exc:
            outcome = exc.kind
        self.outcomes.append(SoakRequest(at_s, outcome))

    def _paper(self) -> str:
        parts: list[str] = []
        while sum(map(len, parts)) < PAPER_CHARS:
            parts.append(self._random.choice(self._examples).context)
        return "\n".join(parts)

    def _warm_up(self) -> None:
        """Fill what fills up to a bound: memory that grows afterwards is a leak.

        The load draws from what is asked here: each question and paper once, each variant with windows of every
        length by all callers at once (ONNX Runtime keeps the memory of shapes that it met). Then one switch.
        """
        variants = [v["name"] for v in self._read("/v1/variants")["variants"]]
        question = self._examples[0].question
        warm: list[tuple[str, str, str | None]] = [
            *((e.question, e.context, None) for e in self._examples),
            *((question, paper, None) for paper in self._papers),
            *(
                (question, paper[:n_chars], name)  # another text each time: no answer is kept
                for name in variants
                for n_chars in reversed(WINDOW_CHARS)
                for paper in self._papers[: 2 * CALLERS]
            ),
        ]
        with ThreadPoolExecutor(CALLERS) as callers:
            done = callers.map(self._ask_warm, warm)
            deque(track(done, "warm-up", len(warm), console=Console(stderr=True)), maxlen=0)
        self._switch()
        self._until_served()
        self.switches, self.events = 0, []

    def _ask_warm(self, request: tuple[str, str, str | None]) -> None:
        question, context, variant = request
        slo: AnswerArguments = {"slo_class": "batch", "latency_ms": WARM_UP_MS}
        if variant is not None:
            slo["variant"] = variant
        with Client(self._stack.http_url, timeout_s=WARM_UP_TIMEOUT_S) as client:
            client.answer(question, context, **slo)

    def _until_served(self) -> None:
        """Wait for the catalog on disk. Raises: TimeoutError."""
        wanted = hashlib.sha256((self._repository / CATALOG).read_bytes()).hexdigest()
        ends = time.monotonic() + SWITCH_S
        while self._stack.readiness()["catalog_sha256"] != wanted:
            if time.monotonic() > ends:
                raise TimeoutError(f"the new catalog is not served after {SWITCH_S:g} s")
            time.sleep(0.5)

    def _switch(self) -> None:
        """Publish the same models as another catalog."""
        path = self._repository / CATALOG
        catalog = json.loads(path.read_text("utf-8"))
        self.switches += 1
        self.events.append(Event(self._now_s, "switch"))
        catalog["origin"]["study"] = f"soak {self.switches}"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(catalog), "utf-8")
        os.replace(part, path)

    def _kill(self) -> None:
        """Kill a model process of Triton; with the models in the gateway there is none."""
        family = psutil.Process(self._stack.pid).children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            stubs = [p for p in family if STUB in " ".join(p.cmdline())]
            if stubs:
                self._random.choice(stubs).kill()
                self.killed += 1
                self.events.append(Event(self._now_s, "kill"))

    def _idle(self) -> Sample:
        """Return the first sample without work in flight, or the last one tried."""
        ends = time.monotonic() + SETTLE_S
        while (sample := self._sample()).busy and time.monotonic() < ends:
            time.sleep(0.5)
        time.sleep(1.0)
        return self._sample() if not sample.busy else sample

    def _sample(self) -> Sample:
        return Sample.of(self._now_s, self._read("/debug/state"), self._models_bytes())

    def _models_bytes(self) -> int:
        found = 0
        for process in psutil.Process(self._stack.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found += process.memory_info().rss
        return found

    def _read(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._stack.http_url}{path}", timeout=30) as reply:
            return json.load(reply)


@contextmanager
def _settings() -> Iterator[None]:
    """Run the block with the settings of the gateway in the environment."""
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _write(folder: Path, run: Run, result: dict[str, Any]) -> None:
    """Keep the samples, and draw them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"samples": [asdict(s) for s in run.samples], "events": [asdict(e) for e in run.events]}
    (folder / "soak.json").write_text(json.dumps(result | rows), "utf-8")
    title = f"{result['minutes']:g} minutes at {result['rate']:g} requests/s, {result['backend']}"
    (folder / "soak.svg").write_text(picture(run.samples, run.events, title), "utf-8")
    print(f"{folder / 'soak.json'}, {folder / 'soak.svg'}")


def _show(found: list[Verdict], run: Run) -> None:
    table = Table("what", "seen", "allowed", "holds")
    for each in found:
        table.add_row(each.what, each.seen, each.allowed, "yes" if each.holds else "NO")
    Console().print(table)
    print(
        f"{len(run.outcomes)} requests, {run.switches} switches of the catalog, {run.killed} model processes"
        f" killed, on {hardware()}"
    )
