"""What a page in a browser may ask and read, over real sockets."""

from __future__ import annotations

import httpx2 as httpx
import pytest
from pydantic import ValidationError

from gateway import api_keys
from gateway.settings import Settings
from tests import live
from tests.asgi import QUESTION_BODY
from tests.live import Running

PAGE = "https://app.example"
KEY = api_keys.new_key()
LOCKED = {"api_keys": {"a": {"sha256": api_keys.digest(KEY), "requests_per_s": 1}}}


async def asked(running: Running, method: str = "POST", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(base_url=f"http://{running.http_url}") as http:
        body = QUESTION_BODY if method == "POST" else None
        return await http.request(method, "/v1/answer", json=body, headers=named)


async def test_without_origins_no_page_may_read_an_answer() -> None:
    """A gateway on localhost must not answer whatever page its user has open."""
    async with live.gateway() as running:
        answer = await asked(running, origin=PAGE)
        preflight = await asked(
            running, "OPTIONS", origin=PAGE, access_control_request_method="POST"
        )
    assert answer.status_code == 200
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in {*answer.headers, *preflight.headers}


async def test_a_preflight_is_answered_without_a_key() -> None:
    """Browsers send none with it; SLO headers and the key are allowed for the request itself."""
    async with live.gateway(cors_origins=[PAGE], **LOCKED) as running:
        wanted = "authorization,content-type,slo-latency-ms"
        response = await asked(
            running,
            "OPTIONS",
            origin=PAGE,
            access_control_request_method="POST",
            access_control_request_headers=wanted,
        )
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-headers"] == wanted
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"slo_latency_ms": "soon"}, 400),
        ({"slo_latency": "50"}, 400),
        ({"slo_policy": "strict", "slo_min_f1": "0.99"}, 422),
        ({"authorization": "Bearer wrong"}, 401),
    ],
)
async def test_a_page_may_read_the_slo_of_answers_and_failures(
    headers: dict[str, str], status: int
) -> None:
    """A failure that a page cannot read looks like a broken network to it."""
    async with live.gateway(cors_origins=[PAGE], **LOCKED) as running:
        response = await asked(
            running, **{"origin": PAGE, "authorization": f"Bearer {KEY}", **headers}
        )
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE
    assert ("ratelimit" in response.headers) == (status != 401)
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    assert {"SLO-Met", "SLO-Plan", "RateLimit", "Retry-After", "X-Request-Id"} <= exposed


async def test_another_origin_may_not_read_and_caches_keep_origins_apart() -> None:
    """One answer for all origins in a cache would lock the right page out."""
    async with live.gateway(cors_origins=[PAGE, "http://localhost:3000"]) as running:
        other = await asked(running, origin="https://evil.example")
        own = await asked(running, origin="http://localhost:3000")
    assert "access-control-allow-origin" not in other.headers
    assert own.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert own.headers["vary"] == "Origin"


@pytest.mark.parametrize("given", ["app.example", "https://app.example/", "HTTPS://app.example"])
def test_what_no_browser_would_send_is_refused(given: str) -> None:
    """Origins are compared as texts: such a setting would allow nobody, in silence."""
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_origins=(given,))


def test_origins_come_as_one_text_or_as_a_list() -> None:
    """A variable holds a text, the file a list."""
    both = ("https://a.example", "http://localhost:3000")
    assert Settings(cors_origins=",".join(both)).cors_origins == both  # type: ignore[arg-type]
    assert Settings(cors_origins=both).cors_origins == both
