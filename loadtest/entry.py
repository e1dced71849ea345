"""`bertier-loadtest`: begins where its packages are."""

from __future__ import annotations

from optimizer.cli import entry


def main() -> int:
    entry.prepare()
    return entry.run("loadtest.cli", "bertier-loadtest")
