"""An S3 server on this host, that can go away and come back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fsspec

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

KEYS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


@dataclass
class LocalStore:
    """A running server with a bucket `studies`."""

    port: int
    server: ThreadedMotoServer

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        """Start it again at the same address, with what it had."""
        self.server = _at(self.port)


@contextmanager
def server() -> Iterator[LocalStore]:
    """Start a server; s3:// means it until the block ends."""
    started = _at(0)
    _, port = started.get_host_and_port()
    before = dict(os.environ)
    os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    found = LocalStore(port, started)
    try:
        kind = fsspec.get_filesystem_class("s3")
        kind.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("studies")
        yield found
    finally:
        os.environ.clear()
        os.environ.update(before)
        found.stop()


def _at(port: int) -> ThreadedMotoServer:
    from moto.server import ThreadedMotoServer  # takes seconds to import

    started = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    started.start()
    return started
