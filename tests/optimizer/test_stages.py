"""A stage is done once for its inputs, and goes on only from what was left for the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer.stages import CHECKPOINT, read_manifest, run_stage


def test_a_finished_stage_is_skipped(tmp_path: Path) -> None:
    """A second run of a study costs nothing."""
    done: list[int] = []

    def work() -> dict[str, Any]:
        done.append(1)
        return {"n": len(done)}

    assert run_stage(tmp_path, {"a": 1}, work) == run_stage(tmp_path, {"a": 1}, work) == {"n": 1}
    assert run_stage(tmp_path, {"a": 2}, work) == {"n": 2}


@pytest.mark.parametrize(("inputs", "kept"), [({"a": 1}, True), ({"a": 2}, False)])
def test_a_killed_stage_goes_on_only_for_the_same_inputs(
    tmp_path: Path, inputs: dict[str, int], kept: bool
) -> None:
    """Half a training at another learning rate is no beginning of this one."""

    def die() -> dict[str, Any]:
        (tmp_path / CHECKPOINT).write_text("half a training")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, {"a": 1}, die)
    run_stage(tmp_path, inputs, lambda: {"kept": (tmp_path / CHECKPOINT).exists()})
    assert (tmp_path / CHECKPOINT).exists() is kept


def test_a_manifest_says_what_the_stage_ran_on(tmp_path: Path) -> None:
    """A number is of little use without the versions it was made with; a rerun keeps the first."""
    run_stage(tmp_path, {"a": 1}, lambda: {"n": 2})
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert {"commit", "cpu", "python", "torch"} <= manifest["ran_on"].keys()
    assert manifest["seconds"] >= 0
