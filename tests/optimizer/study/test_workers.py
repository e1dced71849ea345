"""Workers share pieces of work without waiting for each other while any is free."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from optimizer.study import workers


def test_a_worker_takes_what_no_other_has_and_then_the_rest(tmp_path: Path) -> None:
    """It comes to the whole result, also of what others finished; a lock frees itself."""

    def claim(name: str) -> AbstractContextManager[bool]:
        return workers.claimed(tmp_path / f"{name}.lock")

    taken = workers.in_any_order(["a", "b", "c"], claim, look_every_s=0)
    with claim("a") as mine:
        assert mine
        assert [next(taken), next(taken)] == ["b", "c"]
        with claim("c") as again:
            assert not again, "it is being worked on"
    assert list(taken) == ["a"]
    assert all(_is_free(tmp_path / f"{name}.lock") for name in "abc")


def test_a_worker_waits_for_what_others_have(tmp_path: Path) -> None:
    """Until it is finished, or its worker is gone."""
    tries = iter([False, False, True])
    taken = workers.in_any_order(["a"], lambda _: nullcontext(next(tries)), look_every_s=0)
    assert list(taken) == ["a"]


def _is_free(lock: Path) -> bool:
    with workers.claimed(lock) as mine:
        return mine
