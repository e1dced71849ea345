"""What became of the mutants of `make prove-mutants`: a table by module, and the changes that nobody noticed.

`python -m tests.mutants` prints both; with `--living`, the names alone of the mutants that live on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path("mutants")  # of mutmut
LIVES, UNTESTED, UNKNOWN = (0,), (5, 33), (None,)  # exit codes of pytest and of mutmut


def outcomes(folder: Path) -> Mapping[str, Mapping[str, int | None]]:
    """Return the exit codes of the mutants by module and name; None: not tried yet."""
    found = {}
    for file in sorted(folder.rglob("*.py.meta")):
        module = str(file.relative_to(folder)).removesuffix(".meta")
        if codes := json.loads(file.read_text("utf-8"))["exit_code_by_key"]:
            found[module] = codes
    return found


def table(found: Mapping[str, Mapping[str, int | None]]) -> str:
    """Return the counts as Markdown."""
    rows = [
        "| module | mutants | killed | share | live on | not tried |",
        "|---|---|---|---|---|---|",
    ]
    for module, codes in found.items():
        count = Counter(codes.values())
        living = sum(count[code] for code in (*LIVES, *UNTESTED))
        tried = len(codes) - count[None]
        share = f"{(tried - living) / tried:.1%}" if tried else "-"
        cells = (f"`{module}`", len(codes), tried - living, share, living, count[None])
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def living(found: Mapping[str, Mapping[str, int | None]]) -> list[str]:
    """Return the names of the mutants that no test notices."""
    names = [(name, code) for codes in found.values() for name, code in codes.items()]
    return [name for name, code in names if code in (*LIVES, *UNTESTED)]


def change_of(name: str) -> str:
    """Return the lines that a mutant changes."""
    mutmut = Path(sys.executable).with_name("mutmut")
    shown = subprocess.run([mutmut, "show", name], capture_output=True, text=True, check=True)
    lines = [
        line
        for line in shown.stdout.splitlines()
        if line[:1] in "-+" and line[:3] not in ("---", "+++")
    ]
    return "\n".join([f"# {name}", *lines])


def main() -> None:
    found = outcomes(FOLDER)
    if "--living" in sys.argv:
        print(*living(found), sep="\n")
        return
    print(*map(change_of, living(found)), table(found), sep="\n")


if __name__ == "__main__":
    main()
