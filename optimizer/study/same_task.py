"""Binds a run folder to one task, so that a study of another task does not overwrite its work."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.study.config import ConfigError, TaskConfig
from optimizer.study.stages import MANIFEST, STARTED, write_json

FILE = "task.json"  # in the run folder of a classification
TEACHER = "teacher"  # the first stage's folder


def check(folder: Path, task: TaskConfig | None) -> None:
    """Note the task of a run folder. Raises: ConfigError where it holds the work of another one."""
    path, wanted = folder / FILE, _described(task)
    if path.exists():
        known = str(json.loads(path.read_text())["task"])
    elif any((folder / TEACHER / name).exists() for name in (MANIFEST, STARTED)):
        known = _described(None)
    elif task is None:
        return
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"task": wanted})
        return
    if known != wanted:
        raise ConfigError(
            f"{folder}: holds a study of {known}, not of {wanted}; give this one a folder of its own (--run-dir),"
            " or another `name`. Nothing there was changed"
        )


def _described(task: TaskConfig | None) -> str:
    """Return the columns and labels in words; the task's name does not matter for what was trained."""
    if task is None:
        return "question answering"
    texts = f"{task.text}" if task.text_pair is None else f"{task.text} and {task.text_pair}"
    labels = f" ({', '.join(task.labels)})" if task.labels else ""
    return f"{task.label}{labels} of {texts}"
