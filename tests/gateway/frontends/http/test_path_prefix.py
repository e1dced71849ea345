"""A gateway that a proxy offers under a path of its own."""

from __future__ import annotations

import httpx2 as httpx
import pytest
from pydantic import ValidationError

from gateway.settings import Settings
from tests import live
from tests.asgi import QUESTION_BODY

LOCKED = {"api_keys": {"a": {"sha256": "0" * 64}}}


@pytest.mark.parametrize("prefix", ["/team/qa", ""])
async def test_requests_are_answered_with_and_without_the_prefix(prefix: str) -> None:
    """Some proxies take it off, some do not, and probes come past them."""
    async with (
        live.gateway(root_path="/team/qa") as running,
        httpx.AsyncClient(base_url=f"http://{running.http_url}{prefix}") as http,
    ):
        answer = await http.post("/v1/answer", json=QUESTION_BODY)
        health = await http.get("/healthz")
        model = await http.head("/v2/models/qa")
        document = (await http.get("/openapi.json")).json()
    assert (answer.status_code, answer.json()["answer"]) == (200, "The")
    assert (health.status_code, model.status_code) == (200, 200)
    assert document["servers"] == [{"url": "/team/qa"}]


async def test_the_prefix_opens_no_other_path() -> None:
    """A path is what it is without the prefix: only probes need no key."""
    async with (
        live.gateway(root_path="/qa", **LOCKED) as running,
        httpx.AsyncClient(base_url=f"http://{running.http_url}") as http,
    ):
        statuses = [
            (await http.get(path)).status_code
            for path in ("/qa/healthz", "/qa/v1/variants", "/qax/healthz", "/qa/qa/healthz")
        ]
    assert statuses == [200, 401, 401, 401]


def test_a_prefix_is_a_path() -> None:
    """It is compared as a text: what is no path would never match."""
    assert Settings(root_path="/qa/").root_path == Settings(root_path="/qa").root_path == "/qa"
    assert Settings(root_path="/").root_path == ""
    for wrong in ("qa", "https://x.example/qa", "/q a", "//qa"):
        with pytest.raises(ValidationError, match="is not a path"):
            Settings(root_path=wrong)
