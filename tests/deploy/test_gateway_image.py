"""What the gateway's image holds, installed here by the same script into a clean environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import ROOT

TOO_MUCH = ("torch", "transformers", "onnx", "onnxruntime", "optuna", "scipy", "sklearn", "pip")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the environment that the Dockerfile copies into its last stage."""
    target = tmp_path_factory.mktemp("image") / "bertier"
    script = ROOT / "deploy" / "gateway" / "install.sh"
    subprocess.run([script, target, sys.executable], check=True, cwd=target.parent)
    return target


def run(image: Path, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the image away from the checkout, without the caller's Python settings."""
    return subprocess.run(
        [image / "bin" / command[0], *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": f"{image / 'bin'}:/usr/bin:/bin"},
    )


def test_it_starts_and_reads_the_shipped_models(image: Path, tmp_path: Path) -> None:
    """The wheel carries all that serving needs."""
    command = ("bertier", "variants", "--json", "--model-repository", f"{ROOT}/model_repository")
    printed = run(image, *command, folder=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert '"plans"' in printed.stdout
    assert run(image, "python", "-c", "import gateway.app", folder=tmp_path).stderr == ""


def test_it_is_small_and_holds_nothing_of_training(image: Path, tmp_path: Path) -> None:
    """A gateway that is pulled in seconds scales in seconds; what is not there has no holes."""
    probe = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    assert run(image, "python", "-c", probe, *TOO_MUCH, folder=tmp_path).stdout == "[]\n"
    size_bytes = sum(path.lstat().st_size for path in image.rglob("*"))
    assert size_bytes < 300e6


def test_its_files_do_not_know_where_they_were_built(image: Path) -> None:
    """Two builds of the same sources are the same, byte by byte."""
    (metadata,) = image.glob("lib/python*/site-packages/bertier-*.dist-info")
    assert not (metadata / "direct_url.json").exists()
    assert "direct_url.json" not in (metadata / "RECORD").read_text()


def test_it_can_send_traces(image: Path, tmp_path: Path) -> None:
    """In a cluster it takes a variable to switch them on, not another image."""
    assert (
        run(image, "python", "-c", "import gateway.observability.otel", folder=tmp_path).stderr
        == ""
    )


def test_it_needs_a_triton_and_says_so(image: Path, tmp_path: Path) -> None:
    """There is no engine inside, so a missing address must not end in a traceback."""
    command = ("bertier", "serve", "--backend", "triton", "--http-port", "0", "--grpc-port", "0")
    ended = run(image, *command, folder=tmp_path)
    assert ended.returncode == 1
    assert "--triton-url" in ended.stderr
    assert "Traceback" not in ended.stderr
