"""The training data of a model, as its files record it: floors need questions that trained no model.

A checkpoint from elsewhere says nothing of it, and is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gateway.catalog import store
from gateway.catalog.store import Origin
from optimizer.data.question_sets import SPLIT_VERSION, DataError
from optimizer.study import stages
from optimizer.study.config import StudyConfig

FIRST_VERSION = 1  # of files that do not record their split version


class TrainedOnIt(DataError):
    """The questions may have been used to train the models that they should certify."""


def check_study(config: StudyConfig) -> None:
    """Raises: TrainedOnIt when the study starts from a model trained under another split version."""
    bases = [elastic.base for elastic in config.elastic] + [s.base for s in config.students]
    named = (*config.teachers, config.weights, config.largest, config.backbone, *bases)
    for start in filter(None, named):
        version = split_version_of(Path(start))
        if version not in (None, SPLIT_VERSION):
            raise TrainedOnIt(f"not certified: {_other_split(start, version)}")


def check_catalog(origin: Origin, certifying: Mapping[str, str]) -> None:
    """Raises: TrainedOnIt when the catalog's models may have seen the study's certifying questions.

    `certifying`: the sha256 of each source, by name.
    """
    shared = trained_on(origin, certifying.values())
    if shared and origin.split_version != SPLIT_VERSION:
        named = f"the published models (of {', '.join(shared)})"
        raise TrainedOnIt(f"not certified: {_other_split(named, origin.split_version)}")


def trained_on(origin: Origin, sha256s: Iterable[str]) -> list[str]:
    """Return the names of the data sets with these hashes that the catalog's study knew."""
    known = {sha256: name for name, sha256 in origin.data_sha256.items()}
    return [known[sha256] for sha256 in sha256s if sha256 in known]


def split_version_of(start: Path) -> int | None:
    """Return the split version that a checkpoint was trained under; None: not recorded.

    `start`: the folder of a training stage, of its checkpoint, or of a published variant.
    """
    if (start.parent / store.CATALOG).exists():
        return store.read(start.parent).origin.split_version
    for folder in (start, start.parent):
        manifest = stages.read_manifest(folder)
        if manifest is not None:
            return _split_version(manifest["inputs"])
    return None


def _split_version(inputs: Mapping[str, Any]) -> int | None:
    trained = inputs.get("teacher") if isinstance(inputs.get("teacher"), dict) else inputs
    if not trained or "data" not in trained:
        return None
    return int(trained.get("split_version", FIRST_VERSION))


def _other_split(what: str, version: int | None) -> str:
    return (
        f"{what} were trained under split version {version}, the questions are split by version"
        f" {SPLIT_VERSION}: some that would make floors were trained on. Train anew, or certify with"
        " data that no model was trained on"
    )
