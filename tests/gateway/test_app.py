"""The message of a gateway that is ready, and its ops server."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import httpx2
import psutil
import pytest

from gateway import app
from gateway.app import Gateway, Models
from gateway.catalog import store
from gateway.clock import now_ms
from gateway.domain import Question, SloRequest
from gateway.frontends import sockets as listening
from gateway.frontends import welcome
from gateway.observability.metrics import Metrics
from gateway.settings import Settings, SettingsError
from tests.fakes import CONTEXT, QUESTION, ROOT, FakeBackend, serving_set, small_and_large


def test_the_readme_shows_the_request_that_serve_prints() -> None:
    """Whoever compares the two must find no difference."""
    curl = "curl" + welcome.ready_text("127.0.0.1", 8080).split("curl", 1)[1]
    assert textwrap.indent(curl, "    ") in (ROOT / "README.md").read_text()


def test_the_shipped_models_meet_the_slo_of_the_example() -> None:
    """The first answer anybody sees should say SLO-Met: true."""
    assert store.read(ROOT / "model_repository").best_floor >= welcome.EXAMPLE_MIN_F1


def test_the_request_is_to_where_the_gateway_listens() -> None:
    """Nothing can be asked at 0.0.0.0."""
    assert "curl -i http://127.0.0.1:9080/v1/answer" in welcome.ready_text("0.0.0.0", 9080)
    assert "curl -i http://[::1]:9080/v1/answer" in welcome.ready_text("::", 9080)


def test_the_start_says_where_grpc_and_a_unix_socket_are() -> None:
    """A port of 0 is any free one: nobody could know it otherwise."""
    text = welcome.ready_text("127.0.0.1", 8080, grpc_port=8081)
    assert "bertier answers on http://127.0.0.1:8080  gRPC on 127.0.0.1:8081  (in a browser" in text
    text = welcome.ready_text("127.0.0.1", 0, uds=Path("/run/qa.sock"))
    assert "bertier answers on the Unix socket /run/qa.sock" in text
    assert "curl -i --unix-socket /run/qa.sock http://localhost/v1/answer" in text


def test_the_page_is_named_where_it_is_served() -> None:
    """A newcomer looks before reading; where pages are off there is nothing to look at."""
    assert "in a browser: http://127.0.0.1:8080/," in welcome.ready_text("127.0.0.1", 8080)
    assert "browser" not in welcome.ready_text("127.0.0.1", 8080, playground=False)


def gateway_of(**settings: object) -> Gateway:
    return Gateway(Settings.model_validate(settings), Models(FakeBackend()), Metrics())


async def test_who_watches_has_a_port_of_its_own() -> None:
    """Metrics stay inside while questions come from outside, and no question is answered there."""
    gateway = gateway_of(host="::", metrics_port=0, api_keys={"a": {"sha256": "0" * 64}})
    async with (
        app.watched(gateway) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        scraped = await http.get("/metrics")
        assert scraped.status_code == 200
        assert "bertier_requests_in_flight 0.0" in scraped.text
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/v1/variants")).status_code == 404
        listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.laddr.port == port]
        assert set(listening) == {"127.0.0.1"}


async def test_metrics_that_moved_are_no_longer_on_the_http_port() -> None:
    """A page that is served at two places is protected at neither."""
    for settings, status in ({}, 200), ({"metrics_port": 0}, 404):
        transport = httpx2.ASGITransport(app=app.build(gateway_of(**settings)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            assert (await http.get("/metrics")).status_code == status


async def test_a_port_that_is_taken_is_named() -> None:
    """The error says which setting to change."""
    async with app.watched(gateway_of(metrics_port=0)) as port:
        with pytest.raises(SettingsError, match=r"metrics_port.*--metrics-port"):
            async with app.watched(gateway_of(metrics_port=port)):
                pass


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("nosuch.example.invalid", r"^host: 'nosuch\.example\.invalid' cannot be resolved"),
        ("", "^host: '' cannot be resolved"),
        ("a" * 70, "^host: .* cannot be resolved"),
        ("192.0.2.1", r"^host: 192\.0\.2\.1 is no address of this host"),
    ],
)
def test_a_host_that_is_not_ours_is_another_error_than_a_port_in_use(host: str, said: str) -> None:
    """Another port would not help."""
    with pytest.raises(SettingsError, match=said) as caught:
        listening.open_http(Settings(host=host, http_port=0, grpc_port=0))
    assert "--host" in str(caught.value)
    assert "other program" not in str(caught.value)


def test_a_name_of_this_host_can_be_listened_at() -> None:
    """A pod is given its own name."""
    with listening.open_http(Settings(host="localhost", http_port=0, grpc_port=0)) as found:
        assert found.getsockname()[0] == "127.0.0.1"


async def test_what_was_decided_last_is_written_at_the_stop(tmp_path: Path) -> None:
    """Lines wait for up to a second; a gateway that is stopped loses none."""
    record = tmp_path / "decisions.jsonl"
    gateway = gateway_of(decisions_file=record, grpc_port=0, model_repository=tmp_path)
    async with gateway.lifespan(app.build(gateway)):
        gateway.service.serving = serving_set(small_and_large())
        await gateway.service.answer(Question(QUESTION, CONTEXT), SloRequest(), now_ms())
    assert [json.loads(line)["outcome"] for line in record.read_text().splitlines()] == ["answered"]
