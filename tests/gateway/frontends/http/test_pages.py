"""The pages for a browser, asked over ASGI and over a socket: what is sent, and to whom."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import httpx2 as httpx
import pytest

from gateway import api_keys
from gateway.api_keys import ApiKey
from gateway.frontends.http.playground import pages
from tests import live
from tests.asgi import client, make_service

KEY = api_keys.new_key()
LOCKED = {"mobile": ApiKey(sha256=api_keys.digest(KEY))}
FILES = sorted(pages.read())


@pytest.mark.parametrize("path", FILES)
async def test_every_file_has_a_strict_policy_and_its_type(path: str) -> None:
    """A text of a caller must not become code, whatever a page does with it."""
    async with client(make_service()) as http:
        response = await http.get(path)
    assert response.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert response.headers["x-content-type-options"] == "nosniff"
    wanted = {
        "js": "text/javascript; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "svg": "image/svg+xml",
    }
    assert response.headers["content-type"] == wanted.get(
        path.rpartition(".")[2], "text/html; charset=utf-8"
    )


@pytest.mark.parametrize("path", ["/", "/live", "/docs"])
async def test_a_page_has_no_code_and_no_style_within(path: str) -> None:
    """The policy would block it, and the page would be broken."""
    async with client(make_service()) as http:
        text = (await http.get(path)).text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text)


@pytest.mark.parametrize("path", FILES)
async def test_no_file_names_another_host(path: str) -> None:
    """Pages work where there is no way out, and tell nobody who reads them."""
    async with client(make_service()) as http:
        text = (await http.get(path)).text
    assert set(re.findall(r"https?://[^\"'`\s]+", text)) <= {"http://www.w3.org/2000/svg"}


async def test_what_a_page_names_is_there() -> None:
    """A renamed module would leave a blank page."""
    async with client(make_service()) as http:
        for page in pages.PAGES:
            named = re.findall(r'(?:src|href)="(playground/[^"]+)"', (await http.get(page)).text)
            assert named
            assert {f"/{name}" for name in named} <= set(FILES)
        for path in FILES:
            text = (await http.get(path)).text if path.endswith(".js") else ""
            for module in re.findall(r'from "\./([^"]+)"', text):
                assert f"{pages.PREFIX}{module}" in FILES


async def test_a_file_is_sent_again_only_when_it_changed() -> None:
    """A browser asks each time, and a new version is seen at once."""
    async with client(make_service()) as http:
        etag = (await http.get("/")).headers["etag"]
        for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            response = await http.get("/", headers={"If-None-Match": given})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == etag
        assert (await http.get("/", headers={"If-None-Match": '"other"'})).status_code == 200


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    """Monitors ask so."""
    async with live.gateway() as running, aiohttp.ClientSession() as http:
        async with http.head(f"http://{running.http_url}/") as head:
            assert (head.status, await head.read()) == (200, b"")
        async with http.get(f"http://{running.http_url}/") as whole:
            assert head.headers["content-length"] == str(len(await whole.read()))
            assert head.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize("path", [*FILES, pages.SETTINGS])
async def test_a_setting_turns_the_pages_off(path: str) -> None:
    """An operator may want an API and nothing else."""
    async with client(make_service(playground=False)) as http:
        takes_post = path == "/"  # Hugging Face's client asks there
        assert (await http.get(path)).status_code == (405 if takes_post else 404)


async def test_pages_need_no_key_and_what_they_ask_does() -> None:
    """A browser cannot send a key before a page has asked for one; the page itself tells nothing."""
    async with (
        live.gateway(api_keys=LOCKED) as running,
        httpx.AsyncClient(base_url=f"http://{running.http_url}") as http,
    ):
        for path in FILES:
            assert (await http.get(path)).status_code == 200
        for path in (pages.SETTINGS, "/openapi.json", "/v1/variants", "/metrics", "/else"):
            assert (await http.get(path)).status_code == 401
        assert (await http.post("/")).status_code == 401
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert (await http.get(pages.SETTINGS, headers=bearer)).status_code == 200


async def test_pages_get_the_classes_and_limits_of_the_settings() -> None:
    """They offer what this gateway takes, not what another one does."""
    async with client(make_service(max_top_k=3, metrics_port=0)) as http:
        payload = (await http.get(pages.SETTINGS)).json()
    assert payload["default_class"] == "standard"
    assert payload["classes"]["interactive"]["latency_ms"] == 50
    assert (payload["max_top_k"], payload["metrics"]) == (3, False)


async def test_pages_are_no_part_of_the_api() -> None:
    """A client generated from the document has no use for them."""
    async with client(make_service()) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    readable = {path for path, methods in paths.items() if "get" in methods}
    assert not readable & {*FILES, pages.SETTINGS}


def test_every_file_of_the_folder_is_packaged_and_sent() -> None:
    """A file of another kind would be in the wheel and never be served."""
    kinds = {path.suffix for path in Path(pages.FOLDER).iterdir() if path.is_file()}
    assert kinds <= {*pages.MEDIA_TYPES, ".py"}
