"""HAProxy as a plain TCP balancer, for HTTP and gRPC alike."""

from __future__ import annotations

import csv
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.faults.processes import Program
from loadtest.stack import StackError

# A gateway that is gone refuses connections, and HAProxy takes the next one: nothing but what was in
# flight there is lost. Checks only keep it from trying a gateway that is not ready; they wait long, since
# on busy cores a gateway that answers late is no gateway that is gone.
CONFIG = """\
global
    maxconn 1000
    stats socket ipv4@127.0.0.1:{stats} level user
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
listen http
    bind 127.0.0.1:{http}
    balance roundrobin
{http_servers}
listen grpc
    bind 127.0.0.1:{grpc}
    balance roundrobin
{grpc_servers}
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Of one gateway, or of the balancer in front of them; on 127.0.0.1."""

    http: int
    grpc: int


@dataclass(frozen=True, slots=True)
class Balancer:
    """A balancer in front of gateways, and the port where it says what it thinks of them."""

    program: Program
    stats: int

    def takes(self, n: int) -> bool:
        """Return whether it sends requests to a gateway, over HTTP and gRPC."""
        states = [row["status"] for row in self._servers() if row["svname"] == f"gateway-{n}"]
        return len(states) == 2 and all(state.startswith("UP") for state in states)

    def _servers(self) -> list[dict[str, str]]:
        try:
            with socket.create_connection(("127.0.0.1", self.stats), timeout=5) as connection:
                connection.sendall(b"show stat\n")
                with connection.makefile() as reply:
                    return list(csv.DictReader(reply.read().removeprefix("# ").splitlines()))
        except OSError:
            return []


def of(folder: Path, front: Ports, stats: int, gateways: Sequence[Ports]) -> Balancer:
    """Return a balancer that is yet to be started. Raises: StackError."""
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise StackError("no haproxy here: install Debian's package haproxy")
    config = folder / "haproxy.cfg"
    http = (f"    server gateway-{n} 127.0.0.1:{p.http}" for n, p in enumerate(gateways))
    grpc = (
        f"    server gateway-{n} 127.0.0.1:{p.grpc} port {p.http}" for n, p in enumerate(gateways)
    )
    config.write_text(
        CONFIG.format(
            stats=stats,
            http=front.http,
            grpc=front.grpc,
            http_servers="\n".join(http),
            grpc_servers="\n".join(grpc),
        )
    )
    return Balancer(Program([found, "-db", "-f", str(config)], folder / "haproxy.log"), stats)
