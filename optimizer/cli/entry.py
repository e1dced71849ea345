"""Where commands begin: an extra that is not installed is told, in place of a traceback."""

from __future__ import annotations

import importlib
import sys

OWN = ("bertier", "gateway", "optimizer", "loadtest")


def main() -> int:
    """`bertier-optimize`."""
    return run("optimizer.cli.main", "bertier-optimize")


def run(module: str, command: str) -> int:
    """Run a module's `main`; 1 where it needs a package that is not there."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in OWN:
            raise
        print(
            f"{command}: {exc.name} is not installed, as serving does not need it; install everything"
            " with 'make setup-all' (CONTRIBUTING.md has a way without CUDA)",
            file=sys.stderr,
        )
        return 1
    code: int = found.main()
    return code
