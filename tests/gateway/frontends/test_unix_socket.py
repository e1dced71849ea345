"""HTTP on a Unix socket, and what is in the way of one."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn

from gateway.frontends import sockets
from gateway.frontends.http import routes
from gateway.frontends.http import server as http_server
from gateway.frontends.http.connections import Limits
from gateway.settings import Settings, SettingsError
from tests import live
from tests.asgi import QUESTION_BODY, make_service


async def test_a_question_is_answered_over_a_unix_socket(tmp_path: Path) -> None:
    """A proxy on the same host needs no port."""
    path = tmp_path / "qa.sock"
    service = make_service(uds=path)
    app = routes.create(service, live._ready)
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
    server = http_server.Server(config, Limits(), service.metrics)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([sockets.bind_unix(path)])
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        response = await http.post("/v1/answer", json=QUESTION_BODY)
    server.should_exit = True
    await server.shutdown()
    assert (response.status_code, response.json()["answer"]) == (200, "The")


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    """A gateway that was killed must not have to be cleaned up after by hand."""
    path = tmp_path / "qa.sock"
    sockets.bind_unix(path).close()
    assert path.is_socket()
    with sockets.open_http(Settings(uds=path, grpc_port=0)) as listener:
        assert listener.family == socket.AF_UNIX


def test_what_is_in_use_or_no_socket_stays(tmp_path: Path) -> None:
    """The message names the path and the flag."""
    path, file = tmp_path / "qa.sock", tmp_path / "file"
    file.write_text("x")
    with sockets.bind_unix(path):
        for taken in (path, file, tmp_path / "none" / "qa.sock"):
            with pytest.raises(SettingsError, match=r"uds: cannot listen on .*--uds"):
                sockets.bind_unix(taken)
    assert file.read_text() == "x"
