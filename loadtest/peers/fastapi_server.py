"""FastAPI and uvicorn: one synchronous endpoint, a process a core; ONNX Runtime or PyTorch."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from loadtest.peers.reader import Reader, flags

ENGINE, REPOSITORY, VARIANT = "PEER_ENGINE", "PEER_REPOSITORY", "PEER_VARIANT"
app = FastAPI()


@cache
def reader() -> Reader:
    """Return this process's model; uvicorn's workers learn which from the environment."""
    return Reader(Path(os.environ[REPOSITORY]), os.environ[VARIANT], os.environ[ENGINE])


@app.post("/answer")
def answer(asked: dict[str, Any]) -> dict[str, Any]:
    return reader().answer(asked)


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
    )
