"""TLS on the way to Triton: a real tritonserver that speaks it, with and without the gateway's own certificate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.app import triton_credentials
from gateway.backends.triton import TritonBackend
from gateway.settings import Settings, SettingsError, read
from tests.certificates import Authority
from tests.local_triton import free_ports, installation

START_S = 60


class Files:
    """PEM files of an authority, a server and a gateway."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        self.authority = folder / "authority.pem"
        self.authority.write_bytes(authority.pem)
        self.server = authority.sign("triton").write(folder, "server")
        self.gateway = authority.sign("gateway").write(folder, "gateway")
        self.other = folder / "other.pem"
        self.other.write_bytes(Authority("another").pem)


@pytest.fixture
async def triton(tmp_path: Path) -> AsyncIterator[tuple[str, Files]]:
    """Run tritonserver without models; its callers must show a certificate."""
    files, (port,) = Files(tmp_path), free_ports(1)
    found = installation()
    (tmp_path / "models").mkdir()
    process = await asyncio.create_subprocess_exec(
        str(found.binary),
        f"--model-repository={tmp_path / 'models'}",
        *("--allow-http=false", "--allow-metrics=false", "--grpc-address=127.0.0.1"),
        f"--grpc-port={port}",
        *("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true"),
        f"--grpc-server-cert={files.server[0]}",
        f"--grpc-server-key={files.server[1]}",
        f"--grpc-root-cert={files.authority}",
        env=found.environment(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield f"127.0.0.1:{port}", files
    finally:
        process.kill()
        await process.wait()


def backend(url: str, **tls: Path) -> TritonBackend:
    settings = Settings(triton_url=(url,), **{f"triton_tls_{k}": v for k, v in tls.items()})  # type: ignore[arg-type]  # paths
    return TritonBackend(url, credentials=triton_credentials(settings))


async def is_ready(asked: TritonBackend, *, patient: bool = False) -> bool:
    """Return what it says; `patient`: once it does, the server is still starting."""
    try:
        async with asyncio.timeout(START_S):
            while not (found := await asked.is_ready()) and patient:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
            return found
    finally:
        await asked.close()


async def test_a_triton_is_asked_over_tls(triton: tuple[str, Files]) -> None:
    """Texts cross the network; who listens, or answers in its place, must get nothing."""
    url, files = triton
    certificate, key = files.gateway
    mutual = {"authority": files.authority, "certificate": certificate, "key": key}
    assert await is_ready(backend(url, **mutual), patient=True)
    assert not await is_ready(backend(url, authority=files.authority))  # shows no certificate
    assert not await is_ready(backend(url, **{**mutual, "authority": files.other}))
    assert not await is_ready(TritonBackend(url))  # speaks no TLS


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"triton_tls_authority": "a.pem"}, "needs triton_url"),
        ({"triton_tls_certificate": "a.pem"}, "set both"),
        (
            {"triton_tls_certificate": "a.pem", "triton_tls_key": "a.key"},
            "needs triton_tls_authority",
        ),
    ],
)
def test_files_that_would_not_be_used_are_refused(given: dict[str, str], problem: str) -> None:
    """Else the way to Triton would be open, and nobody knew."""
    with pytest.raises(SettingsError, match=problem):
        read(**{name: Path(file) for name, file in given.items()})


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    """gRPC itself would say at the first call that the handshake failed."""
    file = tmp_path / "a.pem"
    settings = Settings(triton_url=("127.0.0.1:1",), triton_tls_authority=file)
    with pytest.raises(SettingsError, match=r"triton_tls_authority: .*No such file"):
        triton_credentials(settings)
    file.write_text("no certificate")
    with pytest.raises(SettingsError, match="no PEM file"):
        triton_credentials(settings)
