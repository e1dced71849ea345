"""Generates the Python code beside the .proto: `python -m gateway.proto.generate` (needs grpcio-tools)."""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTO = Path("gateway", "proto")
QA = PROTO / "bertier" / "v1" / "qa.proto"


def generate(target: Path) -> list[Path]:
    """Write the generated files below `target`; return their paths relative to it."""
    _protoc(target, QA, "--grpc_python_out")
    return sorted(p.relative_to(target) for p in target.glob(f"{PROTO}/**/*_pb2*.py*"))


def _protoc(target: Path, proto: Path, *more: str) -> None:
    from grpc_tools import protoc  # type: ignore[import-untyped]

    outputs = [f"{flag}={target}" for flag in ("--python_out", "--pyi_out", *more)]
    include = files("grpc_tools") / "_proto"
    code = protoc.main(["protoc", f"-I{ROOT}", f"-I{include}", *outputs, str(ROOT / proto)])
    if code != 0:
        raise SystemExit(f"protoc failed on {proto}")


def main() -> None:
    """Replace the committed code by what the .proto files generate now."""
    with tempfile.TemporaryDirectory() as folder:
        for path in generate(Path(folder)):
            (ROOT / path).write_bytes((Path(folder) / path).read_bytes())
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
