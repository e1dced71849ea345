"""Entry points of the commands: a missing optional package gives one line instead of a traceback."""

from __future__ import annotations

import importlib
import os
import sys

# transformers reports each load with a progress bar and a table, here in the middle of our own log lines.
SILENT = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
PIPED_COLUMNS = "240"  # of tables in a file or a pipe, where nothing may be cut
LIGHT = ("promote", "withdraw", "rollback")  # the commands of optimizer.cli.rollouts
OWN = ("bertier", "gateway", "optimizer", "loadtest")


def main() -> int:
    """`bertier-optimize`; what only moves files of a repository needs no package of training."""
    prepare()
    if sys.argv[1:2] and sys.argv[1] in LIGHT:
        return run("optimizer.cli.rollouts", "bertier-optimize")
    if not {"-h", "--help"} & set(sys.argv):
        print("bertier-optimize: loading", file=sys.stderr)  # seconds, a minute on a busy host
    return run("optimizer.cli.main", "bertier-optimize")


def prepare() -> None:
    """Set what other packages read from the environment."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", PIPED_COLUMNS)


def run(module: str, command: str) -> int:
    """Run a module's `main`; return 1 when a package that it needs is not installed."""
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
