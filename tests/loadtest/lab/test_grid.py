"""Cells are files: a second run plays none again, a changed world plays all; claims are judged by them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from loadtest.lab import contenders, frontier, grid, oracle, page, tables, verdicts
from loadtest.lab.grid import Cell, Grid, Place
from tests.loadtest.lab_world import world

SMALL = Grid(("poisson",), (0.5, 1.5), seeds=2, seconds=4.0, policies=("bertier", oracle.NAME))


def quiet(_: str) -> None:
    return


def test_what_was_played_is_not_played_again(tmp_path: Path) -> None:
    """A killed run goes on; so a cell that is there is taken as it is."""
    cells, folder = grid.run(world(), SMALL, tmp_path, quiet)
    assert len(cells) == 2 * 2 * 2
    path = next((folder / "cells").glob("*-bertier.json"))
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"cpu_s": 1234.0}))
    again, _ = grid.run(world(), SMALL, tmp_path, quiet)
    assert sum(c.found["cpu_s"] == 1234.0 for c in again) == 1


def test_workers_play_what_one_process_plays(tmp_path: Path) -> None:
    """Cells do not depend on who plays them."""
    small = replace(SMALL, loads=(0.5,), policies=("bertier",))
    alone, _ = grid.run(world(), small, tmp_path / "one", quiet)
    together, _ = grid.run(world(), small, tmp_path / "two", quiet, workers=2)
    assert [c.found["all"] for c in alone] == [c.found["all"] for c in together]


def test_another_world_has_cells_of_its_own(tmp_path: Path) -> None:
    """A number of yesterday's catalog or host must not stand beside today's."""
    small = replace(SMALL, loads=(0.5,), seeds=1)
    folders = {grid.run(w, small, tmp_path, quiet)[1] for w in (world(), world(), world(cores=4))}
    assert len(folders) == 2


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """One file to send around: no script, style sheet, font or image by address."""
    cells, _ = grid.run(world(), SMALL, tmp_path, quiet)
    shown = page.html(cells, verdicts.judge(tables.spots(cells), "fixed large"), {"a": "<b>"})
    assert "&lt;b&gt;" in shown
    assert shown.count("<svg") == 2
    addressed = shown.replace("http://www.w3.org/2000/svg", "")
    assert not any(word in addressed for word in ("http:", "https:", "<script", "src=", "<link"))


def cell(policy: str, load: float, **values: float) -> Cell:
    found = {"all": values, "classes": {}, "plans": {}}
    return Cell(Place("mixed", "poisson", load, 0), policy, found)


def judged(*cells: Cell) -> dict[str, bool]:
    return {v.claim: v.holds for v in verdicts.judge(tables.spots(cells), "fixed large")}


def test_cheap_but_worse_is_no_rival_where_there_is_room() -> None:
    """Compute is compared among those within a point of the best."""
    ours = cell("bertier", 0.5, joint=0.95, compute_ms=10.0)
    largest = cell("fixed large", 0.5, joint=0.95, compute_ms=25.0)
    bad = cell("random", 0.5, joint=0.80, compute_ms=5.0)
    good = cell("infaas-style", 0.5, joint=0.945, compute_ms=9.0)
    assert all(judged(ours, largest, bad).values())
    assert judged(ours, largest, bad, good)["least compute among the best"] is False


def test_where_there_is_no_room_ours_has_to_lead_and_come_near_the_bound() -> None:
    """Regret is a share of the bound."""
    f1 = {"served_f1": 0.6, "in_time": 0.9}
    ours = cell("bertier", 1.5, joint=0.8, **f1)
    largest = cell("fixed large", 1.5, joint=0.5, **f1)
    better = cell("infaas-style", 1.5, joint=0.81, **f1)
    bound = cell(oracle.NAME, 1.5, joint=0.9)
    found = judged(ours, largest, better, bound)
    assert found["highest joint attainment"] is False
    assert found["twice always-largest's"] is False
    assert found["regret to the oracle's bound"] is False
    near = judged(ours, largest, cell(oracle.NAME, 1.5, joint=0.82))
    assert near["regret to the oracle's bound"] is True


def test_goodput_far_above_capacity_is_held_against_its_peak() -> None:
    """Nine tenths of the best load's."""
    calm = cell("bertier", 2.0, goodput_per_s=150.0, joint=0.9)
    for at_five, holds in ((136.0, True), (134.0, False)):
        found = judged(calm, cell("bertier", 5.0, goodput_per_s=at_five, joint=0.3))
        assert found["goodput holds far above capacity"] is holds


def test_no_label_of_the_frontier_stands_on_another() -> None:
    """Policies that do alike lie on one spot; their names can still be read."""
    rows = frontier.apart({"a": 50.0, "b": 50.0, "c": 51.0, "d": 200.0})
    found = sorted(rows.values())
    assert all(b - a >= frontier.LABEL_PX for a, b in pairwise(found))
    assert (rows["a"], rows["d"]) == (50.0, 200.0)


def test_the_frontier_holds_what_nothing_beats_in_both() -> None:
    """Accuracy for attainment, and nothing that is worse in both."""
    points = {"a": (0.9, 0.5), "b": (0.5, 0.6), "c": (0.4, 0.55)}
    assert frontier.front(points) == ["b", "a"]


def test_always_largest_is_the_most_accurate_plan() -> None:
    """Named by the catalog, not by us."""
    assert contenders.always_largest(world()) == "fixed large"
