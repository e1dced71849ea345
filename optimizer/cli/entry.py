"""Entry points of the commands: a missing optional package gives one line instead of a traceback."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys

# transformers reports each load with a progress bar and a table, here in the middle of our own log lines.
SILENT = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
PIPED_COLUMNS = "240"  # of tables in a file or a pipe, where nothing may be cut
LIGHT = ("promote", "withdraw", "rollback")  # the commands of optimizer.cli.rollouts
TRAINS = ("run", "teacher", "distill", "finish")  # the commands that do little else
OWN = ("bertier", "gateway", "optimizer", "loadtest")


def main() -> int:
    """`bertier-optimize`; what only moves files of a repository needs no package of training."""
    prepare()
    if sys.argv[1:2] and sys.argv[1] in LIGHT:
        return run("optimizer.cli.rollouts", "bertier-optimize")
    if sys.argv[1:2] and sys.argv[1] in TRAINS:
        keep_freed_memory()
    if not {"-h", "--help"} & set(sys.argv):
        print("bertier-optimize: loading", file=sys.stderr)  # seconds, a minute on a busy host
    return run("optimizer.cli.main", "bertier-optimize")


def prepare() -> None:
    """Set what other packages read from the environment."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", PIPED_COLUMNS)


def keep_freed_memory() -> bool:
    """Have the C library keep memory that is freed, for the next step of training needs as much again.

    Else each large tensor is mapped anew and its pages cleared: some 15 % of the CPU time of large linear layers.
    The process stays as large as it ever was. Returns whether it will: GNU's C library alone has these settings
    (mallopt(3)), and Windows has no handle for None.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


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
