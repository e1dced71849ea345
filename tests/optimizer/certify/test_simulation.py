"""Floors fail no more often than delta, drift alarms no more often than they may."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.certify import simulation

RUNS = 60


def test_floors_by_article_fail_no_more_often_than_delta() -> None:
    """With the measured correlation, floors by article hold; taken for independent, contexts' do not."""
    rows = {(r.world, r.unit, r.delta): r.failed for r in simulation.failures(RUNS)}
    for delta in simulation.DELTAS:
        assert rows["articles", "article", delta] <= delta
        assert rows["independent contexts", "context", delta] <= delta + 0.03
        assert rows["articles", "context", delta] > delta


def test_the_simulated_correlation_is_the_measured_one() -> None:
    """By analysis of variance, of many articles of equal length."""
    rng = np.random.default_rng(1)
    found = np.stack([a[:5] for a in simulation.articles(rng, 20_000, simulation.ICC)])
    between, within = found.mean(1).var(ddof=1), found.var(axis=1, ddof=1).mean()
    of_articles = between - within / 5
    assert of_articles / (of_articles + within) == pytest.approx(simulation.ICC, abs=0.02)
    assert found.mean() == pytest.approx(simulation.MEAN_F1, abs=0.01)


def test_a_text_asked_often_raises_no_false_alarm_in_simulation() -> None:
    """One question a text is as promised either way; twenty are not, counted one by one."""
    single, by_text = simulation.false_alarms(20, 60)
    assert single > 0.1
    assert by_text <= 0.05


def test_the_picture_shows_every_size() -> None:
    """Floors rise with articles, below the mean."""
    points = simulation.floors_by_size((10, 40), 3)
    assert points[0][1] < points[1][1] < simulation.MEAN_F1
    svg = simulation.picture(points)
    assert svg.count("<circle") == 2
    assert "true mean F1 0.65" in svg
