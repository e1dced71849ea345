"""Two gateways and two Tritons as processes of their own, behind HAProxy as a plain TCP balancer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from gateway import catalog as catalogs
from gateway.catalog import Catalog
from gateway.guard import end_with_parent
from gateway.published import Plan
from loadtest.stack import free_ports
from tests.end_to_end.conftest import REPOSITORY

PATIENCE_S = 240.0
# A gateway that is gone refuses connections, and HAProxy takes the next one: nothing but what was in
# flight there is lost. Checks only keep it from trying a gateway that is not ready; they wait long, since
# on busy cores a gateway that answers late is no gateway that is gone.
HAPROXY = """\
global
    maxconn 1000
defaults
    mode tcp
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 10s
    retries 3
    option redispatch 1
    option httpchk GET /readyz
    default-server check inter 500ms fall 2 rise 1 observe layer4
listen gateways
    bind 127.0.0.1:{port}
    balance roundrobin
{servers}
"""


@dataclass
class Program:
    """One process that can be killed and started again on the same ports."""

    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,  # noqa: PLW1509 (a killed test leaves no fleet)
            )

    def kill(self) -> None:
        """End it and all it started as a failing host would: without a word, and with its ports free."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(family, PATIENCE_S)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Fleet:
    """What runs, and where it is asked."""

    url: str  # of the balancer
    gateway_urls: Sequence[str]
    gateways: Sequence[Program]
    tritons: Sequence[Program]
    triton_urls: Sequence[str]  # HTTP
    repository: Path

    def get(self, n: int, path: str) -> tuple[int, Any]:
        """Return status and JSON of one gateway; 0: nobody there."""
        try:
            with urllib.request.urlopen(f"{self.gateway_urls[n]}{path}", timeout=10) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as exc:
            return exc.code, None
        except OSError:
            return 0, None

    def is_ready(self, n: int) -> bool:
        return self.get(n, "/readyz")[0] == 200

    def triton_is_ready(self, n: int) -> bool:
        try:
            with urllib.request.urlopen(f"{self.triton_urls[n]}/v2/health/ready", timeout=10):
                return True
        except OSError:
            return False

    def variants_of(self, n: int) -> set[str]:
        """Return the variants that a gateway serves."""
        _, told = self.get(n, "/readyz")
        found = (told or {}).get("variants", {})
        return {name for name, state in found.items() if state["served"]}


def until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, f"did not happen in time: {what}"


def smallest(count: int) -> Catalog:
    """Return the shipped catalog without all but its smallest variants."""
    shipped = catalogs.read(REPOSITORY)
    kept = sorted(shipped.variants, key=lambda variant: variant.size_bytes)[:count]
    names = {variant.name for variant in kept}
    plans = tuple(_alone(plan) for plan in shipped.plans if set(plan.variants) <= names)
    return replace(shipped, variants=tuple(kept), plans=plans)


def _alone(plan: Plan) -> Plan:
    """Return a plan without what is certified against the largest variant, which may not be there."""
    certificate = replace(plan.certificate, paired=None)
    return replace(plan, certificate=certificate, agreement=None)


def publish(repository: Path, catalog: Catalog) -> None:
    """Put a catalog's models in by rename, then the catalog, as the optimizer does."""
    repository.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / catalogs.TOKENIZER, repository / catalogs.TOKENIZER)
    for variant in catalog.variants:
        if not (repository / variant.name).exists():
            staged = repository.parent / f"staged-{variant.name}"
            shutil.copytree(REPOSITORY / variant.name, staged)
            staged.rename(repository / variant.name)
    catalogs.write(repository, catalog)


@contextmanager
def running(folder: Path) -> Iterator[Fleet]:
    """Start two of each on the two smallest variants, and stop everything at the end."""
    repository = folder / "model_repository"
    publish(repository, smallest(2))
    ports = free_ports(11)
    tritons = [
        _triton(repository, ports[3 * n : 3 * n + 3], folder / f"triton-{n}.log") for n in (0, 1)
    ]
    urls = [f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[4]}"]
    http = ports[6:8]
    gateways = [
        _gateway(repository, urls, http[n], ports[8 + n], folder / f"gateway-{n}.log")
        for n in (0, 1)
    ]
    fleet = Fleet(
        url=f"http://127.0.0.1:{ports[10]}",
        gateway_urls=[f"http://127.0.0.1:{port}" for port in http],
        gateways=gateways,
        tritons=tritons,
        triton_urls=[f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[3]}"],
        repository=repository,
    )
    with ExitStack() as stack:
        for program in (*tritons, *gateways, _balancer(folder, ports[10], http)):
            program.start()
            stack.callback(program.stop)
        for n in (0, 1):
            until(lambda n=n: fleet.is_ready(n), f"gateway {n} is ready")  # type: ignore[misc]
        yield fleet


def _triton(repository: Path, ports: Sequence[int], log: Path) -> Program:
    http, grpc, metrics = map(str, ports)
    command = [
        *(sys.executable, "-m", "gateway.cli", "triton", "--model-repository", str(repository)),
        *("--triton-http-port", http, "--triton-grpc-port", grpc, "--triton-metrics-port", metrics),
    ]
    return Program(command, log)


def _gateway(repository: Path, urls: Sequence[str], http: int, grpc: int, log: Path) -> Program:
    command = [
        *(sys.executable, "-m", "gateway.cli", "serve", "--model-repository", str(repository)),
        *("--http-port", str(http), "--grpc-port", str(grpc), "--triton-url", ",".join(urls)),
    ]
    return Program(command, log)


def _balancer(folder: Path, port: int, gateways: Sequence[int]) -> Program:
    servers = "\n".join(f"    server gateway-{n} 127.0.0.1:{p}" for n, p in enumerate(gateways))
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, servers=servers))
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, "no haproxy here: install Debian's package haproxy"
    return Program([found, "-db", "-f", str(config)], folder / "haproxy.log")
