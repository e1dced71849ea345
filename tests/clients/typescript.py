"""openapi-typescript and openapi-fetch: types of /openapi.json, compiled strictly, and a question asked with them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.clients.asked import addresses, say

SOURCES = Path(__file__).with_name("typescript")


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def main() -> None:
    url, _ = addresses()
    if shutil.which("npm") is None:
        raise SystemExit("npm is missing: install Node.js 20 or newer")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in SOURCES.iterdir():
            shutil.copy(source, folder)
        run(folder, "npm", "install", "--silent", "--no-audit", "--no-fund")
        # A field with a default may be left out of a request; the generator assumes the opposite.
        options = ("--default-non-nullable=false", "--output", "schema.d.ts")
        run(folder, "npx", "openapi-typescript", f"{url}/openapi.json", *options)
        say("types", f"{len((folder / 'schema.d.ts').read_text().splitlines())} lines")
        run(folder, "npx", "tsc", "--project", ".")
        say("tsc --strict", "no error")
        print(run(folder, "node", "out/ask.js", url))


main()
