"""LitServe: a worker process a core, one question at a time each."""

from __future__ import annotations

from typing import Any

import litserve

from loadtest.peers.reader import Reader, flags


class Answers(litserve.LitAPI):  # type: ignore[misc]  # not installed where types are checked
    def __init__(self, repository: Any, variant: str, engine: str) -> None:
        super().__init__(api_path="/answer")
        self._model = repository, variant, engine

    def setup(self, device: str) -> None:
        self._reader = Reader(*self._model)

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._reader.answer(body)


if __name__ == "__main__":
    args = flags(__doc__ or "")
    server = litserve.LitServer(
        Answers(args.repository, args.variant, args.engine),
        accelerator="cpu",
        workers_per_device=args.workers,
    )
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")
