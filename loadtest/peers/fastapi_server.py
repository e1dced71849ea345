"""FastAPI and uvicorn: one synchronous endpoint, a process a core; ONNX Runtime or PyTorch."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from loadtest.peers.reader import Reader, flags

ENGINE, REPOSITORY, VARIANT = "PEER_ENGINE", "PEER_REPOSITORY", "PEER_VARIANT"
LOAD_S = 300  # a worker that imports PyTorch does not answer its supervisor's pings meanwhile


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load this process's model before it serves; workers learn which from the environment."""
    env = os.environ
    app.state.reader = Reader(Path(env[REPOSITORY]), env[VARIANT], env[ENGINE])
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/answer")
def answer(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = app.state.reader.answer(body)
    return found


if __name__ == "__main__":
    args = flags(__doc__ or "")
    os.environ |= {
        ENGINE: args.engine,
        REPOSITORY: str(args.repository),
        VARIANT: args.variant,
    }
    uvicorn.run(
        "loadtest.peers.fastapi_server:app",
        port=args.port,
        workers=args.workers,
        log_level="warning",
        timeout_worker_healthcheck=LOAD_S,
    )
