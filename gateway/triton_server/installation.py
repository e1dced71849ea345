"""Finds a Triton on this host and the environment to start it. Starts nothing itself.

It finds two kinds: the Triton inside the wheel nvidia-pytriton (installed without its dependencies), which has only
the Python backend and uses ours for ONNX models; and a complete Triton on PATH.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import BackendUnavailable

log = logging.getLogger(__name__)

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_PACKAGE = Path(__file__).parents[1]
# In a checkout; in a wheel.
_BACKEND_FOLDERS = (
    _PACKAGE.parent / "deploy" / "triton" / "backends",
    _PACKAGE / "triton_backends",
)


@dataclass(frozen=True, slots=True)
class TritonInstallation:
    """A tritonserver that can be started."""

    binary: Path
    engine: str  # what runs the models, as profiles name it; empty: the server says it
    backends: Path | None  # a complete backend directory; None: one is made of the wheel's parts
    parts: tuple[Path, ...] = ()  # files of the wheel's Python backend
    libraries: tuple[Path, ...] = ()  # folders the loader must search

    def backend_directory(self, work_directory: Path) -> Path:
        """Return a folder with an `onnxruntime` backend, made under `work_directory` if need be."""
        if self.backends is not None:
            return self.backends
        made = work_directory / "backends"
        # Copies: Triton refuses a library that is a link out of its folder ("escapes").
        for folder, files in (("python", self.parts), ("onnxruntime", (_our_backend(),))):
            (made / folder).mkdir(parents=True)
            for file in files:
                shutil.copy(file, made / folder)
        stub = made / "python" / "triton_python_backend_stub"
        stub.chmod(0o755)
        return made

    def environment(self, outside: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables Triton and its stub processes need."""
        # The stub's interpreter finds its packages through the python3 that is first on PATH.
        path = os.pathsep.join((str(Path(sys.executable).parent), outside.get("PATH", os.defpath)))
        libraries = [str(folder) for folder in self.libraries]
        libraries += filter(None, [outside.get("LD_LIBRARY_PATH")])
        found = {**outside, "PATH": path}
        return found | ({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {})


def find_installation() -> TritonInstallation | None:
    """Return the wheel's Triton, else the one on PATH; None where there is neither."""
    return _in_wheel() or _on_path()


def _in_wheel() -> TritonInstallation | None:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    server = package / "tritonserver"
    stub = server / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    library_folder = Path(sysconfig.get_config_var("LIBDIR"))
    problem = _what_is_missing(server, stub, library_folder)
    if problem:
        log.warning("the Triton of nvidia-pytriton cannot be used: %s", problem)
        return None
    python_backend = server / "backends" / "python"
    return TritonInstallation(
        binary=server / "bin" / "tritonserver",
        engine=_onnxruntime(),
        backends=None,
        parts=(stub, *(f for f in python_backend.iterdir() if f.is_file())),
        libraries=(library_folder, package.parent / "nvidia_pytriton.libs"),
    )


def _what_is_missing(server: Path, stub: Path, library_folder: Path) -> str | None:
    if not (server / "bin" / "tritonserver").exists():
        return f"{server} has no tritonserver; install it again"
    if not stub.exists():
        return f"it has no stub for Python {_PYTHON}"
    shared = library_folder.glob(f"libpython{_PYTHON}.so*")
    if not any(shared) and not ctypes.util.find_library(f"python{_PYTHON}"):
        return f"there is no libpython{_PYTHON}.so; install it (Debian: libpython{_PYTHON})"
    if not _onnxruntime():
        return "onnxruntime is not installed; install bertier[cpu]"
    return None


def _on_path() -> TritonInstallation | None:
    found = shutil.which("tritonserver")
    if found is None:
        return None
    binary = Path(found).resolve()
    backends = binary.parent.parent / "backends"
    if not (backends / "onnxruntime").is_dir():
        log.warning("%s cannot be used: %s has no onnxruntime backend", binary, backends)
        return None
    return TritonInstallation(binary=binary, engine="", backends=backends)


def _onnxruntime() -> str:
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"onnxruntime {importlib.metadata.version(distribution)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _our_backend() -> Path:
    for folder in _BACKEND_FOLDERS:
        path = folder / "onnxruntime" / "model.py"
        if path.exists():
            return path
    raise BackendUnavailable(
        f"{_BACKEND_FOLDERS[-1]}: Triton's onnxruntime backend is missing; install bertier again"
    )
