"""Two gateways and two Tritons as processes of their own, behind a balancer, on models of their own."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.catalog import store
from gateway.catalog.schema import Plan
from gateway.catalog.store import Catalog
from loadtest.faults import balancer as balancers
from loadtest.faults.balancer import Balancer, Ports
from loadtest.faults.processes import Program, until
from loadtest.stack import free_ports

# Within a second the balancer knows that a gateway stops, and gRPC connections get a tenth older than this.
SETTINGS = {"BERTIER_STOP_DELAY_MS": "4000", "BERTIER_GRPC_CONNECTION_AGE_MS": "2000"}
IN_FLIGHT = "bertier_requests_in_flight "


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway, and where it is asked without a balancer."""

    program: Program
    url: str

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body; 0: nobody there."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as exc:
            return exc.code, b""
        except OSError:
            return 0, b""

    @property
    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    @property
    def in_flight(self) -> int:
        """Return how many requests it has, as it says itself."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(round(float(line.split()[1])) for line in lines if line.startswith(IN_FLIGHT))

    def variants(self) -> set[str]:
        """Return the variants that it serves."""
        found = self._readiness().get("variants", {})
        return {name for name, state in found.items() if state["served"]}

    def tritons(self) -> int:
        """Return how many Tritons it asks for every variant."""
        states = self._readiness().get("replicas", {}).values()
        return sum(set(state["variants"].values()) == {"serving"} for state in states)

    def _readiness(self) -> dict[str, Any]:
        status, body = self.get("/readyz")
        found: dict[str, Any] = json.loads(body) if status == 200 else {}
        return found


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs, and where it is asked."""

    http_url: str  # of the balancer
    grpc_url: str
    gateways: Sequence[Gateway]
    tritons: Sequence[Program]
    balancer: Balancer
    source: Path  # the repository that the models come from
    repository: Path  # the one that is served

    def wait_for_gateway(self, n: int) -> None:
        """Return when a gateway can answer, and the balancer knows. Raises: StackError."""
        gateway = self.gateways[n]
        until(lambda: gateway.program.check() and gateway.ready, f"gateway {n} is ready")
        until(lambda: self.balancer.takes(n), f"the balancer takes gateway {n}")

    def wait_for_tritons(self) -> None:
        """Return when every gateway asks every Triton. Raises: StackError."""
        for gateway in self.gateways:
            until(
                lambda gateway=gateway: gateway.tritons() == len(self.tritons),  # type: ignore[misc]
                "a gateway asks every Triton",
            )

    def publish(self, catalog: Catalog) -> None:
        """Put a catalog's models in by rename, then the catalog, as the optimizer does."""
        publish(self.source, self.repository, catalog)

    def wait_for_catalog(self, catalog: Catalog) -> None:
        """Return when every gateway serves it. Raises: StackError."""
        names = {variant.name for variant in catalog.variants}
        for gateway in self.gateways:
            until(lambda gateway=gateway: gateway.variants() == names, "the switch")  # type: ignore[misc]


def smallest(source: Path, count: int) -> Catalog:
    """Return a repository's catalog with its smallest variants alone."""
    by_size = sorted(store.read_questions(source).variants, key=lambda variant: variant.size_bytes)
    kept = only(source, {variant.name for variant in by_size[:count]})
    return replace(kept, plans=tuple(_alone(plan) for plan in kept.plans))


def only(source: Path, names: Collection[str]) -> Catalog:
    """Return a repository's catalog with these variants alone, and the plans that need no others."""
    shipped = store.read_questions(source)
    variants = tuple(variant for variant in shipped.variants if variant.name in names)
    plans = tuple(plan for plan in shipped.plans if set(plan.variants) <= set(names))
    return replace(shipped, variants=variants, plans=plans)


def _alone(plan: Plan) -> Plan:
    """Return a plan without what is certified against the largest variant, which may not be there."""
    certificate = replace(plan.certificate, paired=None)
    return replace(plan, certificate=certificate, agreement=None)


def publish(source: Path, repository: Path, catalog: Catalog) -> None:
    """Put a catalog's models in by rename, then the catalog."""
    repository.mkdir(exist_ok=True)
    shutil.copy(source / store.TOKENIZER, repository / store.TOKENIZER)
    for variant in catalog.variants:
        if not (repository / variant.name).exists():
            staged = repository.parent / f"staged-{variant.name}"
            shutil.copytree(source / variant.name, staged)
            staged.rename(repository / variant.name)
    store.write(repository, catalog)


@contextmanager
def running(folder: Path, source: Path, variants: int = 2, workers: int = 1) -> Iterator[Fleet]:
    """Start two of each on the smallest variants, and stop everything at the end. Raises: StackError."""
    fleet, programs = _laid_out(folder, source, workers)
    fleet.publish(smallest(source, variants))
    with ExitStack() as stack:
        for program in programs:
            program.start()
            stack.callback(program.stop)
        for n in range(len(fleet.gateways)):
            fleet.wait_for_gateway(n)
        fleet.wait_for_tritons()
        yield fleet


def _laid_out(folder: Path, source: Path, workers: int) -> tuple[Fleet, Sequence[Program]]:
    """Return a fleet, and its processes in the order of their start."""
    ports, repository = iter(free_ports(11)), folder / "model_repository"
    triton_ports = [[next(ports) for _ in range(2)] for _ in (0, 1)]
    tritons = [
        _triton(repository, p, folder / f"triton-{n}.log") for n, p in enumerate(triton_ports)
    ]
    urls = ",".join(f"127.0.0.1:{grpc}" for grpc, _ in triton_ports)
    places = [Ports(next(ports), next(ports)) for _ in (0, 1)]
    gateways = [
        Gateway(_gateway(repository, urls, p, workers, folder / f"gateway-{n}.log"), _http(p))
        for n, p in enumerate(places)
    ]
    front = Ports(next(ports), next(ports))
    balancer = balancers.of(folder, front, next(ports), places)
    fleet = Fleet(
        http_url=_http(front),
        grpc_url=f"grpc://127.0.0.1:{front.grpc}",
        gateways=gateways,
        tritons=tritons,
        balancer=balancer,
        source=source,
        repository=repository,
    )
    return fleet, (*tritons, *(g.program for g in gateways), balancer.program)


def _http(ports: Ports) -> str:
    return f"http://127.0.0.1:{ports.http}"


def _triton(repository: Path, ports: Sequence[int], log: Path) -> Program:
    grpc, metrics = map(str, ports)
    command = [
        *(
            sys.executable,
            "-m",
            "gateway.cli.main",
            "triton",
            "--model-repository",
            str(repository),
        ),
        *("--triton-grpc-port", grpc, "--triton-metrics-port", metrics),
    ]
    return Program(command, log)


def _gateway(repository: Path, urls: str, ports: Ports, workers: int, log: Path) -> Program:
    command = [
        *(sys.executable, "-m", "gateway.cli.main", "serve", "--model-repository", str(repository)),
        *("--http-port", str(ports.http), "--grpc-port", str(ports.grpc), "--triton-url", urls),
        *("--workers", str(workers)),
    ]
    return Program(command, log, SETTINGS)
