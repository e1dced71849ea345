"""mosec: its Rust front, a worker process a core, no batching."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import mosec

from loadtest.peers.reader import Reader, flags

REPOSITORY, VARIANT, ENGINE = "PEER_REPOSITORY", "PEER_VARIANT", "PEER_ENGINE"


class Answers(mosec.Worker):  # type: ignore[misc]  # not installed where types are checked
    def __init__(self) -> None:
        env = os.environ  # workers are started anew, and know nothing of the command line
        self._reader = Reader(Path(env[REPOSITORY]), env[VARIANT], env[ENGINE])

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return self._reader.answer(data)


if __name__ == "__main__":
    args = flags(__doc__ or "")
    os.environ |= {
        REPOSITORY: str(args.repository),
        VARIANT: args.variant,
        ENGINE: args.engine,
        "MOSEC_PORT": str(args.port),
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_TIMEOUT": "10000",  # ms; a longer queue than any that is measured
        "MOSEC_LOG_LEVEL": "warning",
    }
    sys.argv = sys.argv[:1]  # mosec reads the command line, too, and knows other flags
    server = mosec.Server()
    server.register_runtime({"/answer": [mosec.Runtime(Answers, num=args.workers)]})
    server.run()
