"""Keys: who has none gets nowhere, who has one gets what it is for, and a mistake locks nobody in or out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

import bertier
from bertier import AsyncClient, Retries, Security
from gateway import api_keys
from gateway.api_keys import ApiKey, KeyFileError, Scope
from gateway.auth.access import Access
from gateway.auth.quota import Quota
from gateway.auth.reloading import LOOK_EVERY_MS, Reloading
from gateway.cli import main
from gateway.errors import Forbidden, QuotaExceeded, Unauthenticated
from gateway.observability.metrics import Metrics
from gateway.proto.bertier.v1 import qa_pb2 as pb
from gateway.settings import Settings
from tests import live
from tests.fakes import CONTEXT, QUESTION

KEY, OTHER = api_keys.new_key(), api_keys.new_key()


def one(key: str = KEY, **more: Any) -> dict[str, ApiKey]:
    return {"mobile": ApiKey(sha256=api_keys.digest(key), **more)}


def bearer(key: str) -> str:
    return f"Bearer {key}"


class Clock:
    ms = 0.0

    def __call__(self) -> float:
        return self.ms


def file_of(tmp_path: Path, **named: str) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(
        "\n".join(api_keys.entry(n, ApiKey(sha256=api_keys.digest(k))) for n, k in named.items())
    )
    return path


def test_without_keys_everybody_is_admitted() -> None:
    """A newcomer's first request needs no key."""
    assert Access(Settings(), Metrics()).admit("http", None, Scope.ANSWER) is None


@pytest.mark.parametrize(
    "given",
    [None, "", KEY, bearer(OTHER), bearer(KEY) + "x", "Basic " + KEY, bearer("x" * 100_000)],
    ids=["none", "empty", "bare", "another", "longer", "basic", "huge"],  # keys are drawn anew
)
def test_a_wrong_key_is_not_admitted(given: str | None) -> None:
    """Another key, another scheme, no key, a megabyte of it: one answer."""
    with pytest.raises(Unauthenticated):
        Access(Settings(api_keys=one()), Metrics()).admit("http", given, Scope.ANSWER)


def test_a_key_does_what_its_scopes_say() -> None:
    """Who scrapes metrics need not read answers, nor the other way round."""
    guarded = Access(Settings(api_keys=one(scopes=["metrics"])), Metrics())
    caller = guarded.admit("http", bearer(KEY), Scope.METRICS)
    assert caller is not None
    assert caller.name == "mobile"
    with pytest.raises(Forbidden, match="mobile"):
        guarded.admit("http", bearer(KEY), Scope.ANSWER)


def test_a_key_that_is_taken_out_stops_without_a_restart(tmp_path: Path) -> None:
    """A leaked key is revoked by an edit."""
    path, clock = file_of(tmp_path, mobile=KEY, web=OTHER), Clock()
    guarded = Access(Settings(api_keys_file=path), Metrics(), clock)
    guarded.admit("http", bearer(KEY), Scope.ANSWER)
    file_of(tmp_path, web=OTHER)
    clock.ms += LOOK_EVERY_MS
    guarded.admit("http", bearer(OTHER), Scope.ANSWER)
    with pytest.raises(Unauthenticated):
        guarded.admit("http", bearer(KEY), Scope.ANSWER)


SHA = f'sha256 = "{"0" * 64}"\n'
NONSENSE = {
    "cut short": "[mobile",
    "no hash": '[mobile]\nsha256 = "x"',
    "an unknown field": "[mobile]\nsecret = 1",
    "a wrong scope": f"[mobile]\n{SHA}scopes = ['admin']",
    "no scope": f"[mobile]\n{SHA}scopes = []",
    "a quota of 0": f"[mobile]\n{SHA}requests_per_s = 0",
    "a quota below 0": f"[mobile]\n{SHA}requests_per_s = -1",
    "a quota in words": f"[mobile]\n{SHA}requests_per_s = 'many'",
    "one hash under two names": f"[a]\n{SHA}[b]\n{SHA}",
    "emptied": " \n",
    "deleted": None,
    "binary": "\x00\xff",
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_a_file_edited_to_nonsense_changes_nothing(
    tmp_path: Path, nonsense: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets in and nobody is locked out; log and metric say that the file needs mending, once."""
    path, clock, metrics = file_of(tmp_path, mobile=KEY), Clock(), Metrics()
    guarded = Access(Settings(api_keys_file=path), metrics, clock)
    path.unlink() if nonsense is None else path.write_text(nonsense, "latin-1")
    for _ in range(3):
        clock.ms += LOOK_EVERY_MS
        assert guarded.admit("http", bearer(KEY), Scope.ANSWER) is not None
        with pytest.raises(Unauthenticated):
            guarded.admit("http", bearer(OTHER), Scope.ANSWER)
    refused = {"file": "keys"}
    assert metrics.registry.get_sample_value("bertier_reload_refused", refused) == 1
    assert caplog.text.count("stay valid") == 1
    assert str(path) in caplog.text
    file_of(tmp_path, web=OTHER)
    clock.ms += LOOK_EVERY_MS
    assert guarded.admit("http", bearer(OTHER), Scope.ANSWER) is not None
    assert metrics.registry.get_sample_value("bertier_reload_refused", refused) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mobile", "not TOML"),
        ('["Mo bile"]\nsha256 = "' + "0" * 64 + '"', "a-z 0-9"),
        ('[a]\nsha256 = "' + "0" * 64 + '"\ntightest_class = "x"', "none of batch"),
        ('[a]\nsha256 = "' + "0" * 64 + '"\nrequests_per_s = 0', "requests_per_s"),
        (
            '[a]\nsha256 = "' + "0" * 64 + '"\n[b]\nsha256 = "' + "0" * 64 + '"',
            "a and b are the same",
        ),
        ('[a]\nsha256 = "' + "0" * 64 + '"\nquota = 1', "quota"),
        ("", "is empty; make a key"),
    ],
)
def test_a_file_of_keys_that_cannot_be_is_refused_by_name(
    tmp_path: Path, text: str, said: str
) -> None:
    """At the start the gateway says exactly what and where, and does not serve unguarded."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=said) as caught:
        Access(Settings(api_keys_file=path), Metrics())
    assert str(path) in str(caught.value)


def test_a_missing_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    """A wrong path must not serve everybody."""
    with pytest.raises(KeyFileError, match="cannot be read"):
        Access(Settings(api_keys_file=tmp_path / "none.toml"), Metrics())


def test_a_file_without_a_key_locks_all_out_when_it_says_so(tmp_path: Path) -> None:
    """The last key is revoked like any other; only an empty file is taken for a mistake."""
    path, clock = file_of(tmp_path, mobile=KEY), Clock()
    guarded = Access(Settings(api_keys_file=path), Metrics(), clock)
    path.write_text("# no keys\n")
    clock.ms += LOOK_EVERY_MS
    with pytest.raises(Unauthenticated):
        guarded.admit("http", bearer(KEY), Scope.ANSWER)


def test_corrected_file_rights_are_seen(tmp_path: Path) -> None:
    """Neither content nor time of a file change with its rights."""
    path = file_of(tmp_path, mobile=KEY)
    clock = Clock()
    looked = Reloading([path], clock)
    path.chmod(0o600)
    path.chmod(0o644)
    clock.ms += LOOK_EVERY_MS
    assert looked.is_due()
    clock.ms += LOOK_EVERY_MS
    assert not looked.is_due()


def test_what_could_not_be_used_is_tried_again_unchanged(tmp_path: Path) -> None:
    """A certificate that begins tomorrow is good tomorrow."""
    clock = Clock()
    looked = Reloading([tmp_path / "a.pem"], clock)
    assert looked.failed("begins tomorrow")
    clock.ms += LOOK_EVERY_MS
    assert looked.is_due()
    assert not looked.failed("begins tomorrow")
    looked.worked()
    clock.ms += LOOK_EVERY_MS
    assert not looked.is_due()


def test_a_quota_fills_again() -> None:
    """Ten a second is ten at once, then one each tenth of a second."""
    quota = Quota(10.0)
    assert [quota.take(1, 0.0) for _ in range(10)] == [0.0] * 10
    assert quota.left(0.0) == 0
    assert quota.take(1, 0.0) == pytest.approx(100.0)
    assert quota.take(1, 100.0) == 0.0
    assert quota.left(600.0) == 5
    assert quota.reset_ms(600.0) == pytest.approx(500.0)


def test_a_slow_quota_still_lets_one_through() -> None:
    """One request in ten seconds is a quota, not a lock."""
    quota = Quota(0.1)
    assert quota.take(1, 0.0) == 0.0
    assert quota.take(1, 1_000.0) == pytest.approx(9_000.0)


def test_a_caller_beyond_its_quota_learns_when_to_retry() -> None:
    """The wait is the quota's, and the count is the key's own."""
    metrics = Metrics()
    caller = Access(Settings(api_keys=one(requests_per_s=2)), metrics).admit(
        "http", bearer(KEY), Scope.ANSWER
    )
    assert caller is not None
    caller.take(2)
    with pytest.raises(QuotaExceeded, match="2 requests a second") as caught:
        caller.take(1)
    assert 0 < caught.value.retry_after_ms <= 500
    beyond = {"key": "mobile", "outcome": "quota"}
    assert metrics.registry.get_sample_value("bertier_key_requests_total", beyond) == 1


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_both_frontends_ask_for_the_key(scheme: str) -> None:
    """Over both protocols, a caller without a key is refused, and one with a key is answered."""
    async with live.gateway(api_keys=one()) as running:
        url = f"{scheme}://{running.http_url if scheme == 'http' else running.grpc_url}"
        async with AsyncClient(url) as client:
            assert await client.ready()
            with pytest.raises(bertier.Denied, match="Authorization: Bearer"):
                await client.answer(QUESTION, CONTEXT)
        async with AsyncClient(url, security=Security(api_key=OTHER)) as client:
            with pytest.raises(bertier.Denied):
                [found async for found in client.answers([bertier.Ask(QUESTION, CONTEXT)])]
        async with AsyncClient(url, security=Security(api_key=KEY)) as friend:
            assert await friend.answer(QUESTION, CONTEXT)
        assert running.backend.asked == ["large"]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_key_cannot_ask_for_less_latency_than_its_class(scheme: str) -> None:
    """Who pays for the standard class gets no interactive answers, be it by number or by name."""
    async with live.gateway(api_keys=one(tightest_class="standard")) as running:
        url = f"{scheme}://{running.http_url if scheme == 'http' else running.grpc_url}"
        async with AsyncClient(url, security=Security(api_key=KEY)) as client:
            assert await client.answer(QUESTION, CONTEXT, latency_ms=250)
            for slo in ({"latency_ms": 249.0}, {"slo_class": "interactive"}):
                with pytest.raises(bertier.Denied, match="from 250, the class standard"):
                    await client.answer(QUESTION, CONTEXT, **slo)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_every_question_of_a_list_counts(scheme: str) -> None:
    """A list is no way around a quota; what is beyond it fails alone."""
    async with live.gateway(api_keys=one(requests_per_s=2)) as running:
        url = f"{scheme}://{running.http_url if scheme == 'http' else running.grpc_url}"
        asks = [bertier.Ask(QUESTION, CONTEXT)] * 5
        async with AsyncClient(url, security=Security(api_key=KEY)) as client:
            found = [f async for f in client.answers(asks)]
        assert sum(isinstance(f, bertier.Overloaded) for f in found) >= 2
        assert sum(isinstance(f, bertier.Answer) for f in found) >= 2


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_plan_counts_as_a_question(scheme: str) -> None:
    """It is worked out like one, and reveals as much of the gateway's load."""
    async with live.gateway(api_keys=one(requests_per_s=0.1)) as running:
        url = f"{scheme}://{running.http_url if scheme == 'http' else running.grpc_url}"
        impatient = Retries(attempts=1)
        async with AsyncClient(url, security=Security(api_key=KEY), retries=impatient) as client:
            assert (await client.plan(n_tokens=100)).feasible
            with pytest.raises(bertier.Overloaded, match="mobile"):
                await client.plan(n_tokens=100)


async def test_a_stranger_over_grpc_is_denied_before_a_message_is_read() -> None:
    """Else twenty megabytes could be sent by whoever likes."""
    async with (
        live.gateway(api_keys=one()) as running,
        grpc.aio.insecure_channel(running.grpc_url) as channel,
    ):
        call: Any = channel.stream_unary("/bertier.v1.QuestionAnswering/Answer")

        async def never() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        async with asyncio.timeout(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(never())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


RATE_LIMIT = r'"mobile";r=0;t=([1-9]|10)'  # none left; the seconds until there is one


async def test_a_quota_stands_in_the_headers() -> None:
    """A client that reads RateLimit never meets a 429."""
    async with (
        # One in ten seconds: a slow host must not let the quota fill again between two lines.
        live.gateway(api_keys=one(requests_per_s=0.1)) as running,
        httpx2.AsyncClient(base_url=f"http://{running.http_url}") as http,
    ):
        headers = {"authorization": bearer(KEY)}
        body = {"question": QUESTION, "context": CONTEXT}
        reply = await http.post("/v1/answer", json=body, headers=headers)
        assert reply.headers["ratelimit-policy"] == '"mobile";q=1;w=10'
        assert re.fullmatch(RATE_LIMIT, reply.headers["ratelimit"])
        beyond = await http.post("/v1/answer", json=body, headers=headers)
        assert beyond.status_code == 429
        assert beyond.json()["type"].endswith("quota-exceeded")
        assert int(beyond.headers["retry-after"]) >= 1
        assert re.fullmatch(RATE_LIMIT, beyond.headers["ratelimit"])
        labels = {"slo_class": "standard", "objective": "joint", "outcome": "violated"}
        registry = running.service.metrics.registry
        assert not registry.get_sample_value("bertier_slo_requests_total", labels)


async def test_grpc_tells_the_quota_in_its_metadata() -> None:
    """Whoever asks over gRPC paces itself by the same words, in answers and in refusals."""
    async with (
        live.gateway(api_keys=one(requests_per_s=0.1)) as running,
        grpc.aio.insecure_channel(running.grpc_url) as channel,
    ):
        ask: Any = channel.unary_unary(
            "/bertier.v1.QuestionAnswering/Answer",
            pb.AnswerRequest.SerializeToString,
            pb.AnswerResponse.FromString,
        )
        question = pb.AnswerRequest(question=QUESTION, context=CONTEXT)
        headers = (("authorization", bearer(KEY)),)
        call = ask(question, metadata=headers)
        await call
        first = dict(await call.initial_metadata())
        assert first["ratelimit-policy"] == '"mobile";q=1;w=10'
        assert re.fullmatch(RATE_LIMIT, str(first["ratelimit"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(question, metadata=headers)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        last = dict(caught.value.trailing_metadata() or ())
        assert re.fullmatch(RATE_LIMIT, str(last["ratelimit"]))


async def test_probes_need_no_key_and_all_else_does() -> None:
    """A load balancer has no key; an unknown path reveals nothing to a caller without one."""
    async with live.gateway(api_keys=one()) as running:
        async with httpx2.AsyncClient(base_url=f"http://{running.http_url}") as http:
            assert [(await http.get(p)).status_code for p in ("/healthz", "/readyz")] == [200, 200]
            for path in ("/metrics", "/v1/variants", "/openapi.json", "/v2/models/qa", "/none"):
                denied = await http.get(path)
                assert (denied.status_code, denied.headers["www-authenticate"]) == (401, "Bearer")
        async with grpc.aio.insecure_channel(running.grpc_url) as channel:
            stream: Any = channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stream(iter([b""])):
                    pass
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_caller_without_a_key_learns_only_whether_it_is_ready() -> None:
    """Probes need no more; addresses, paths, models and hashes are for those with a key."""
    async with (
        live.gateway(api_keys=one()) as running,
        httpx2.AsyncClient(base_url=f"http://{running.http_url}") as http,
    ):
        assert (await http.get("/readyz")).json() == {"ready": True}
        wrong = await http.get("/readyz", headers={"authorization": bearer(OTHER)})
        assert wrong.json() == {"ready": True}
        whole = await http.get("/readyz", headers={"authorization": bearer(KEY)})
        assert whole.json()["backend"] == "fake"
    async with (
        live.gateway() as running,
        httpx2.AsyncClient(base_url=f"http://{running.http_url}") as http,
    ):
        assert (await http.get("/readyz")).json()["backend"] == "fake"


async def test_a_stranger_is_denied_before_the_body_is_read() -> None:
    """A wrong key costs us neither parsing nor memory."""
    async with live.gateway(api_keys=one()) as running:
        host, port = running.http_url.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/answer HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(20):
            assert (await reader.readline()).split()[1] == b"401"
        writer.close()


async def test_a_key_is_made_put_into_a_file_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a new caller: one command, one file, one header."""
    path = tmp_path / "keys.toml"
    assert await asyncio.to_thread(main.main, ["keys", "mobile", "--file", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert await asyncio.to_thread(main.main, ["keys", "mobile", "--file", str(path)]) == 1
    assert "is there already" in capsys.readouterr().err
    async with live.gateway(api_keys_file=path) as running:
        url = f"http://{running.http_url}"
        asking = ["ask", QUESTION, "--context", CONTEXT, "--url", url]
        assert await asyncio.to_thread(main.main, asking) == 1
        assert "no key" in capsys.readouterr().err
        monkeypatch.setenv("BERTIER_API_KEY", key)
        assert await asyncio.to_thread(main.main, asking) == 0


def test_a_client_asks_a_denied_question_once() -> None:
    """Asking again with the same key is no use to anybody."""
    denied = bertier.Denied(bertier.errors.Failure("unauthenticated", "no"))
    assert Retries().wait_ms(denied, 1, 0.0, 0.0) is None
