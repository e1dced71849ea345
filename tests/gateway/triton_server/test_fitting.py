"""How many instances fit into the memory of a control group."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.backends.triton_config import with_instances
from gateway.errors import BackendUnavailable
from gateway.triton_server.fitting import Fitting
from tests.fakes import ROOT, make_catalog, make_variant

MIB = 1 << 20
SIZES = {"small": 10 * MIB, "large": 100 * MIB}  # an instance: 90 and 360 MiB; the rest 250
CATALOG = make_catalog(
    [replace(make_variant(name, 5), size_bytes=size) for name, size in SIZES.items()], [0.5, 0.7]
)


@pytest.mark.parametrize(
    ("limit_mib", "counts"),
    [(2000, (2, 2)), (1300, (2, 2)), (1000, (2, 1)), (800, (1, 1)), (500, (1, 1))],
)
def test_the_largest_models_lose_instances_first(limit_mib: int, counts: tuple[int, int]) -> None:
    """A small model's instance saves little, and is what answers under load."""
    fitting = Fitting(limit_mib * MIB)
    found = tuple(v.instances for v in fitting.fit(CATALOG).variants)
    assert found == counts
    assert fitting.fits(CATALOG) == (counts == (2, 2))


def test_without_a_limit_nothing_changes() -> None:
    """Most hosts have none."""
    assert Fitting(None).fit(CATALOG) is CATALOG


def test_the_log_says_what_is_less_and_what_is_too_much(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A process that is killed for memory leaves no reason behind."""
    with caplog.at_level(logging.WARNING):
        Fitting(1000 * MIB).fit(CATALOG)
    assert "1000 MiB: instances of large 1 of 2" in caplog.text
    assert "may be killed" not in caplog.text
    Fitting(500 * MIB).fit(CATALOG)
    assert "processes may be killed" in caplog.text


def test_a_configuration_gets_the_number_and_keeps_the_rest(tmp_path: Path) -> None:
    """Triton takes it in place of the file."""
    folder = ROOT / "model_repository" / "minilm-2"
    assert with_instances(folder, 2) is None
    config = with_instances(folder, 1)
    assert config is not None
    assert '"count": 1' in config
    assert '"sha256.1"' in config
    with pytest.raises(BackendUnavailable, match=r"config\.pbtxt"):
        with_instances(tmp_path, 1)
