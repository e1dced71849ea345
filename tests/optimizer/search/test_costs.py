"""What a slice costs depends on its shape alone, and on which of its layers are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog.schema import Precision
from optimizer.models.weights import GraphShape
from optimizer.search import costs
from optimizer.search.costs import CostGate
from optimizer.search.storage import SearchError
from optimizer.study.space import Space

SHAPE = GraphShape(128, (2, 1), 16, (48, 96), 50)


def test_shared_layers_have_a_cost_of_their_own() -> None:
    """Of three layers that all differ one list is enough; with two the same the file is smaller."""
    space = Space(layers=((0, 1, 2), (0, 1, 1), (1, 2, 3), (0, 0, 1)), heads=(2,), ffn=(96,))
    found = [costs.graph_shape(SHAPE, candidate) for candidate in costs.shapes(space)]
    assert [shape.shared for shape in found] == [(), (0, 1, 1), (0, 0, 2)]
    assert {shape.layers for shape in found} == {3}


def test_what_was_measured_before_a_knob_was_there_stays_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name of a measurement in a run folder is a hash of its shape."""
    monkeypatch.setattr(CostGate, "host", "a host")
    assert CostGate(SHAPE, 64, Path())._key(SHAPE, Precision.FP32) == "f03edf5278431227"
    once = replace(SHAPE, drops=((1, 0.5),))
    assert CostGate(SHAPE, 64, Path())._key(once, Precision.FP32) == "5542d2d1339d77a8"
    twice = replace(SHAPE, drops=((1, 0.5), (2, 0.3)))
    assert CostGate(SHAPE, 64, Path())._key(twice, Precision.FP32) != "5542d2d1339d77a8"


def test_a_request_of_another_version_is_refused() -> None:
    """A knob that this version does not know must not be left out of what is measured."""
    request = costs.WANTED.dump_python(costs.Wanted(SHAPE, Precision.FP32, 64, 1.0), mode="json")
    assert costs.read(request).shape == SHAPE
    request["shape"] |= {"keep": 0.5, "drop_after": 1}
    with pytest.raises(SearchError, match="of different versions"):
        costs.read(request)
