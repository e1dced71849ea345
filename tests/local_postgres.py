"""The real PostgreSQL for tests: a server of its own, in a folder that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.local_triton import free_ports

USER = "bertier"
SERVER_USER = "postgres"  # PostgreSQL refuses to run as root; Debian's package brings this user
START_S = 60


def program(name: str) -> str:
    """Return where a server program is; without one the tests fail, loudly."""
    places = [os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    found = shutil.which(name, path=os.pathsep.join(places))
    assert found, f"no {name} here: 'make system-packages' installs PostgreSQL"
    return found


@dataclass(frozen=True)
class Server:
    """A server on a port of this host, with an empty database."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def create(self) -> None:
        data = ("--pgdata", str(self._data))
        _run("initdb", *data, "--username", USER, "--auth", "trust", "--no-sync")

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c fsync=off -k {self.folder}"
        wait = ("--wait", "--timeout", str(START_S), "--log", str(self.folder / "log"))
        _run("pg_ctl", "--pgdata", str(self._data), "start", *wait, "--options", options)

    def stop(self) -> None:
        """Stop at once, as a crash would; nothing happens to one that is stopped."""
        if (self._data / "postmaster.pid").exists():
            _run("pg_ctl", "--pgdata", str(self._data), "stop", "--wait", "--mode", "immediate")


@contextmanager
def server() -> Iterator[Server]:
    """Yield a running server, whose data goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="bertier-postgres-"))
    if os.getuid() == 0:
        account = pwd.getpwnam(SERVER_USER)
        os.chown(folder, account.pw_uid, account.pw_gid)
    running = Server(folder, *free_ports(1))
    try:
        running.create()
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def _run(name: str, *arguments: str) -> None:
    user = SERVER_USER if os.getuid() == 0 else None
    done = subprocess.run(
        [program(name), *arguments],
        user=user,
        extra_groups=[] if user else None,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name}: {done.stdout}"
