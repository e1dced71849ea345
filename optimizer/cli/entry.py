"""Entry points of the commands: a missing optional package gives one line instead of a traceback."""

from __future__ import annotations

import importlib
import os
import sys

# transformers reports each load with a progress bar and a table, here in the middle of our own log lines.
SILENT = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
LIGHT = ("promote", "withdraw", "rollback")  # the commands of optimizer.cli.rollouts
OWN = ("bertier", "gateway", "optimizer", "loadtest")


def main() -> int:
    """`bertier-optimize`; what only moves files of a repository needs no package of training."""
    light = sys.argv[1:2] and sys.argv[1] in LIGHT
    return run("optimizer.cli.rollouts" if light else "optimizer.cli.main", "bertier-optimize")


def run(module: str, command: str) -> int:
    """Run a module's `main`; return 1 when a package that it needs is not installed."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in OWN:
            raise
        print(
            f"{command}: the package {exc.name} is not installed (serving does not need it); install"
            " everything with 'make setup-all' (CONTRIBUTING.md explains how to install without CUDA)",
            file=sys.stderr,
        )
        return 1
    code: int = found.main()
    return code
