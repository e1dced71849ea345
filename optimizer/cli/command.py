"""Runs a parsed command: its log, its errors, its exit status."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from typing import Any

from gateway.errors import BertierError


def run(args: argparse.Namespace) -> int:
    """Run the parsed command `args.run`, in one process or in as many as torchrun started."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    try:
        result = _run_together(args) if _is_one_of_many() else args.run(args)
    except BertierError as exc:
        print(f"bertier-optimize: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bertier-optimize: stopped; run the same command again to resume", file=sys.stderr)
        return 130
    if result is not None:
        print(json.dumps(result, sort_keys=True, default=str))
    return 0


def _is_one_of_many() -> bool:
    """Return whether torchrun started several processes of this command."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _run_together(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run the command in the first process; the others help where it trains, and return None."""
    from optimizer.training import loop, processes

    with processes.joined():
        if processes.rank():
            logging.disable(logging.INFO)
            loop.follow()
            return None
        found: dict[str, Any] = args.run(args)
        processes.send(None)
        return found
