"""docs/layers.svg shows the layers that `lint-imports` enforces."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gateway.docs import layers
from tests.fakes import ROOT

PICTURE = ROOT / "docs" / "layers.svg"


def test_the_picture_is_what_the_contracts_make() -> None:
    """Who changes a layer or a package's docstring runs `make docs-layers`; a picture by hand would be out of date."""
    assert PICTURE.read_text() == layers.picture(layers.layers(ROOT / "pyproject.toml"))


@pytest.mark.parametrize("program", ["gateway", "optimizer", "loadtest"])
def test_every_package_has_a_layer_and_a_purpose(program: str) -> None:
    """A reader finds every folder in the picture, with what it is for."""
    drawn = {
        part.name: part.purpose
        for row in layers.layers(ROOT / "pyproject.toml")[program]
        for part in row
    }
    folders = {path.parent.name for path in (ROOT / program).glob("*/__init__.py")}
    assert folders <= set(drawn)
    assert all(drawn.values())


def test_a_higher_layer_is_drawn_higher(tmp_path: Path) -> None:
    """The picture is read from top to bottom as imports go."""
    for name in ("upper", "lower"):
        (tmp_path / "shop" / name).mkdir(parents=True)
        (tmp_path / "shop" / name / "__init__.py").write_text(f'"""Sells & {name}."""\n')
    contracts = tmp_path / "pyproject.toml"
    contracts.write_text(
        "[[tool.importlinter.contracts]]\n"
        'type = "layers"\ncontainers = ["shop"]\nlayers = ["upper", "(lower)"]\n'
    )
    drawn = ET.fromstring(layers.picture(layers.layers(contracts)))
    height = {text.text: float(text.attrib["y"]) for text in drawn.iter() if "y" in text.attrib}
    assert height["shop/"] < height["upper"] < height["Sells & upper."] < height["lower"]
