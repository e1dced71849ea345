"""The image that compose and Kubernetes start can serve every model file that ships."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.deploy.engine import MODEL_SERVER
from tests.fakes import ROOT

REPOSITORY = ROOT / "model_repository"
FILES = sorted(REPOSITORY.glob("*/*/model.onnx"))
each_model = pytest.mark.parametrize("path", FILES, ids=lambda path: path.parts[-3])


def test_there_are_models() -> None:
    """Else the tests below would pass for nothing."""
    assert FILES


@each_model
def test_the_images_engine_knows_the_models_opset_and_operators(path: Path) -> None:
    """The stock image carries an older ONNX Runtime than pip, and refuses what it does not know."""
    model = onnx.load(path, load_external_data=False)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    contrib = {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    assert model.ir_version <= MODEL_SERVER.max_ir_version
    assert opsets.keys() <= {"", "com.microsoft"}
    assert opsets[""] <= MODEL_SERVER.max_opset
    assert opsets.get("com.microsoft", 1) == 1
    assert contrib <= set(MODEL_SERVER.contrib_operators)


@each_model
def test_the_backend_is_one_that_the_image_has(path: Path) -> None:
    """The same file names the C++ backend there and the Python one of the wheel."""
    config = (path.parents[1] / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config


def test_the_document_names_the_same_image() -> None:
    """Who copies a command gets the server that was checked."""
    page = (ROOT / "docs" / "how-to" / "model-servers.md").read_text()
    assert MODEL_SERVER.image in page
    assert MODEL_SERVER.onnxruntime in page
