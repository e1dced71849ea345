"""Prints modules and logical lines of each package: `python -m gateway.docs.count_lines [CHECKOUT]`.

A logical line is a statement that is not a docstring. Generated code is left out. Nothing at run time imports it.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path

PACKAGES = ("bertier", "gateway", "optimizer", "loadtest")
GENERATED = ("*_pb2.py", "*_pb2_grpc.py")


def count(root: Path) -> dict[str, tuple[int, int]]:
    """Return the number of modules and of logical lines, by package of the first two levels."""
    modules, lines = Counter[str](), Counter[str]()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if any(path.match(pattern) for pattern in GENERATED):
                continue
            where = ".".join(path.relative_to(root).parts[:-1][:2])
            modules[where] += 1
            lines[where] += logical_lines(path.read_text())
    return {where: (modules[where], lines[where]) for where in modules}


def logical_lines(source: str) -> int:
    """Return the number of statements that are not docstrings."""
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    return sum(not _is_text(node) for node in statements)


def _is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a bare text: a docstring."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m gateway.docs.count_lines", description=__doc__)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path())
    found = count(parser.parse_args().checkout)
    for where, (n_modules, n_lines) in found.items():
        print(f"{where:28} {n_modules:4} modules {n_lines:6} logical lines")
    total = [sum(column) for column in zip(*found.values(), strict=True)]
    print(f"{'total':28} {total[0]:4} modules {total[1]:6} logical lines")
