"""What is wrong with a model repository, and what to do about it: `bertier validate`.

Loads every model in this process and asks it the golden inputs, as a gateway does at its start.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

from gateway.catalog import candidate_classes, store
from gateway.catalog.schema import Variant
from gateway.catalog.store import Catalog
from gateway.domain import Trust
from gateway.errors import BertierError
from gateway.latency.kept_profiles import KeptProfiles
from gateway.lifecycle import classes, preparation
from gateway.settings import Settings

NAME = re.compile(r'^\s*name\s*:\s*"([^"]*)"', re.M)
BACKEND = re.compile(r'^\s*(?:backend|platform)\s*:\s*"([^"]*)"', re.M)
BACKENDS = ("onnxruntime", "onnxruntime_onnx")
BATCH = re.compile(r"^\s*max_batch_size\s*:\s*(\d+)", re.M)


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of a repository; `problems` empty: it can be served whole."""

    problems: tuple[str, ...]
    trust: dict[str, Trust] = field(default_factory=dict)


def validate(repository: Path, settings: Settings) -> Finding:
    """Return everything that is found wrong, not only the first thing.

    `settings`: files with SLO classes may only change classes that these have.
    """
    problems = check_classes(repository, settings)
    try:
        catalog = store.read(repository)
    except BertierError as exc:
        return Finding((str(exc), *problems))
    problems += store.check_files(repository, catalog)
    for variant in catalog.variants:
        problems += check_config(repository, variant)
    if problems:
        return Finding(tuple(problems))
    return asyncio.run(_ask_models(repository, catalog, KeptProfiles.of(settings)))


def check_classes(repository: Path, settings: Settings) -> list[str]:
    """Return why a gateway would not use the SLO classes in the repository, or not try the candidate."""
    problems = []
    for name in (candidate_classes.CLASSES, candidate_classes.CANDIDATE):
        path = repository / name
        try:
            raw = candidate_classes.read_bytes(repository, name)
            if raw is not None:
                classes.in_place(candidate_classes.parse(raw, path)[0], settings, path)
        except BertierError as exc:
            problems.append(str(exc))
    return problems


def check_config(repository: Path, variant: Variant) -> list[str]:
    """Return where config.pbtxt contradicts the catalog."""
    path = repository / variant.name / "config.pbtxt"
    if not path.exists():
        return []  # catalog.check_files says it
    text = path.read_text("utf-8", errors="replace")
    problems = []
    name, backend, batch = (_first(pattern, text) for pattern in (NAME, BACKEND, BATCH))
    if name not in (None, variant.name):
        problems.append(
            f"{path}: name is {name!r}, the folder and the catalog say {variant.name!r}"
        )
    if backend not in BACKENDS:
        problems.append(f"{path}: backend is {backend!r}, it must be 'onnxruntime'")
    if not variant.batch_invariant and int(batch or 0) > 1:
        problems.append(
            f"{path}: max_batch_size {batch} for a model whose answers depend on its batch;"
            f" set it to 0 or 1, or publish {variant.name} again"
        )
    return problems


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found.group(1) if found else None


async def _ask_models(repository: Path, catalog: Catalog, kept: KeptProfiles) -> Finding:
    from gateway.backends.embedded import EmbeddedBackend

    backend = EmbeddedBackend(repository)
    try:
        served = await preparation.prepare(repository, catalog, backend, kept=kept)
    except BertierError as exc:
        return Finding((str(exc),))
    finally:
        await backend.close()
    problems = [served.problems.get(v.name) or "" for v in catalog.variants]
    lines = [f"{p}; publish it again" for p in problems if p]
    lines += [
        f"{name}: its golden answers differ on this host: its certificate does not hold here"
        for name, trust in served.trust.items()
        if trust is Trust.UNCERTIFIED
    ]
    return Finding(tuple(lines), dict(served.trust))
