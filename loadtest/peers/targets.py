"""Who takes part in the contest, and how each is asked: all of them text in, answer out."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import psutil

from gateway.backends.triton import TritonBackend
from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.catalog.store import Catalog
from gateway.errors import BertierError, DeadlineExceeded
from gateway.qa import codec
from gateway.qa.codec import SpanEncoder
from gateway.triton_server.guard import end_with_parent
from loadtest.drive.load_clients import HttpLoadClient, LoadClient
from loadtest.drive.outcomes import Outcome, Reply, TargetLost
from loadtest.drive.schedule import Request
from loadtest.stack import Stack, free_ports, stop

PATIENCE_S = 10.0
START_S = 300.0  # PyTorch alone takes a minute to import on a busy host
STOP_S = 5.0
POLL_S = 0.2


class PeerError(BertierError):
    """A peer that cannot be started; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server of another make: its module, its engine, the packages it needs."""

    name: str
    module: str
    engine: str
    needs: str

    def command(
        self, python: str, port: int, workers: int, repository: Path, variant: str
    ) -> list[str]:
        return [
            *(python, "-m", f"loadtest.peers.{self.module}", "--engine", self.engine),
            *("--port", str(port), "--workers", str(workers)),
            *("--repository", str(repository), "--variant", variant),
        ]


PEERS = (
    Peer("FastAPI + PyTorch", "fastapi_server", "torch", "torch"),
    Peer("FastAPI + ONNX Runtime", "fastapi_server", "onnx", "fastapi"),
    Peer("LitServe", "litserve_server", "onnx", "litserve"),
    Peer("mosec", "mosec_server", "onnx", "mosec"),
)


class PeerLoadClient(HttpLoadClient):
    """POST /answer with question and context: what all peers of this project offer."""

    async def ask(self, request: Request) -> Reply:
        example = request.example
        body = {"question": example.question, "context": example.context}
        timeout = aiohttp.ClientTimeout(PATIENCE_S)
        try:
            async with self._client.post(
                f"{self.where}/answer", json=body, timeout=timeout
            ) as reply:
                said = await reply.read()
                if reply.status != 200:
                    return Reply(Outcome.FAILED, f"{reply.status}: {said[:200]!r}")
                return Reply(Outcome.ANSWERED, answer=json.loads(said)["answer"])
        except TimeoutError:
            return Reply(Outcome.SILENT, f"no answer within {PATIENCE_S:g} s")
        except aiohttp.ClientError as exc:
            return Reply(Outcome.LOST, f"{type(exc).__name__}: {exc}")

    async def probe(self) -> None:
        """Return if it listens; peers have no health check in common."""
        host, _, port = self.where.removeprefix("http://").partition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError as exc:
            raise TargetLost(f"{self.where}: {exc.strerror or exc}") from exc
        writer.close()

    async def ready(self) -> None:
        await self.probe()


class TritonClient:
    """Triton alone with one variant: its caller encodes and decodes, with the gateway's code."""

    def __init__(self, target: str, variant: Variant, encoder: SpanEncoder) -> None:
        self.where = target
        self._backend, self._variant, self._encoder = TritonBackend(target), variant, encoder

    async def ask(self, request: Request) -> Reply:
        question = request.example.as_question()
        windows = self._encoder.encode(question)
        try:
            found = await self._backend.infer(self._variant, windows, PATIENCE_S * 1e3)
        except DeadlineExceeded as exc:
            return Reply(Outcome.EXPIRED, str(exc))
        except BertierError as exc:
            return Reply(Outcome.LOST, str(exc))
        answer = codec.decode(windows, found.spans, question, self._variant.decoding)
        return Reply(Outcome.ANSWERED, answer=answer.text, variant=self._variant.name)

    async def probe(self) -> None:
        if not await self._backend.is_ready():
            raise TargetLost(f"{self.where}: Triton is not ready")

    async def ready(self) -> None:
        await self.probe()

    async def close(self) -> None:
        await self._backend.close()


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the contest. `url`: a server of ours or a peer; else Triton itself."""

    name: str
    url: str = ""
    floor: float = 0.0  # asked of the gateway
    variant: str = ""  # asked of Triton
    peer: bool = False

    def load_client(self, repository: Path, catalog: Catalog, stack: Stack) -> LoadClient:
        """Return the way to ask it; made in the loop that uses it."""
        if self.variant:
            encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
            return TritonClient(stack.triton_grpc, catalog.variant(self.variant), encoder)
        return (PeerLoadClient if self.peer else HttpLoadClient)(self.url)


def of_stack(stack: Stack, catalog: Catalog, names: Sequence[str]) -> list[Target]:
    """Return, for each variant, the gateway asked for its floor, and Triton asked for itself."""
    floors = {p.variants[0]: p.certified_f1 for p in catalog.plans if len(p.variants) == 1}
    ours = [
        Target(f"bertier, F1 >= {floors[n]:.3f}", stack.http_url, floors[n])
        for n in names
        if n in floors
    ]
    return [*ours, *(Target(f"Triton alone, {n}", variant=n) for n in names)]


@contextmanager
def running(
    peer: Peer, python: str, workers: int, repository: Path, variant: str
) -> Iterator[Target]:
    """Start a peer, wait until it answers a question, and stop it at the end. Raises: PeerError."""
    (port,) = free_ports(1)
    command = peer.command(python, port, workers, repository.resolve(), variant)
    with TemporaryDirectory(prefix="bertier-") as folder:
        log = Path(folder) / "peer.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - a killed contest leaves no server
            )
        target = Target(peer.name, f"http://127.0.0.1:{port}", peer=True)
        try:
            if not asyncio.run(_answers(target, process)):
                said = log.read_text(errors="replace")[-1500:]
                raise PeerError(f"{target.name} did not get ready; the end of its log:\n{said}")
            yield target
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a peer with all its workers: some leave theirs behind when they are asked to end."""
    try:
        workers = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        workers = []
    process.terminate()
    _, alive = psutil.wait_procs(workers, timeout=STOP_S)
    for worker in alive:
        worker.kill()
    stop(process)


async def _answers(target: Target, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the first answer; False: the server ended, or took too long."""
    body = {"question": "Who came?", "context": "Ada came at noon."}
    patience = aiohttp.ClientTimeout(PATIENCE_S)
    async with aiohttp.ClientSession(timeout=patience) as client:
        for _ in range(round(START_S / POLL_S)):
            if process.poll() is not None:
                return False
            try:
                async with client.post(f"{target.url}/answer", json=body) as reply:
                    if reply.status == 200:
                        return True
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(POLL_S)
    return False
