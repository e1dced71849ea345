"""Classification over every protocol: the same label, headers and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

import bertier
from bertier import Client, Retries
from tests import asgi, live
from tests.fakes import small_and_large, with_entails, with_topic
from tests.live import Running

TOPICS = with_topic(small_and_large())
MIXED = with_entails(TOPICS)
PAIR = {"text": "Boats swim.", "text_pair": "They float."}
ONCE = Retries(attempts=1)


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with live.gateway(MIXED) as running:
        yield running


async def post(running: Running, body: object, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=f"http://{running.http_url}") as http:
        return await http.post("/v1/classify", json=body, headers=headers)


async def test_a_text_is_classified_over_http(gateway: Running) -> None:
    """The answer has every label, and the headers of every answer."""
    body = {"text": "The boat left.", "task": "topic", "id": "x"}
    reply = await post(gateway, body, **{"slo-min-f1": "0.8", "slo-explain": "1"})
    found = reply.json()
    assert (found["label"], found["task"], found["id"]) == ("sport", "topic", "x")
    assert [s["label"] for s in found["scores"]] == ["sport", "city", "river"]
    assert found["scores"][0]["probability"] == found["score"]
    assert (found["variant"], found["slo"]["min_f1"]) == ("topic-small", 0.8)
    assert {o["plan"] for o in found["explain"]["options"]} == {"topic-small", "topic-large"}
    assert reply.headers["slo-f1"] == "0.8000"
    assert reply.headers["slo-met"] == "true"
    assert reply.headers["server-timing"].startswith("tokenize;dur=")


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind", "detail"),
    [
        ({"text": "a"}, {}, 422, "invalid-field", "task: missing, and several"),
        ({"text": "a", "task": "mood"}, {}, 404, "unknown-task", "served: topic, entails"),
        ({"text": "a", "task": "entails"}, {}, 422, "invalid-field", "text_pair: missing"),
        ({**PAIR, "task": "topic"}, {}, 422, "invalid-field", "text_pair: the task topic"),
        ({"task": "topic"}, {}, 422, "invalid-field", "text: Field required"),
        ({"text": " ", "task": "topic"}, {}, 422, "empty-text", "text: empty"),
        ({"text": "a", "label": "b"}, {}, 422, "invalid-field", "label: Extra inputs"),
        (
            {"text": "a", "task": "topic"},
            {"slo-min-answerable-f1": "0.1"},
            400,
            "invalid-header",
            "none with a classification",
        ),
        (
            {"text": "a", "task": "topic"},
            {"slo-variant": "large"},
            400,
            "unknown-variant",
            "is of the task 'qa'",
        ),
    ],
)
async def test_what_cannot_be_classified_is_a_problem(
    gateway: Running,
    body: object,
    headers: dict[str, str],
    status: int,
    kind: str,
    detail: str,
) -> None:
    """Each says what is wrong and what to do."""
    reply = await post(gateway, body, **headers)
    problem = reply.json()
    assert (reply.status_code, problem["type"]) == (status, f"urn:bertier:problem:{kind}")
    assert detail in problem["detail"]


async def test_without_a_classification_the_route_says_so() -> None:
    """A caller learns that the repository answers questions only."""
    reply = await asgi.post(asgi.make_service(), "/v1/classify", json={"text": "a"})
    assert reply.status_code == 404
    assert "this repository answers questions only" in reply.json()["detail"]


async def test_without_questions_their_route_says_so() -> None:
    """And the other way round; the classification needs no name."""
    async with (
        live.gateway(TOPICS.only("topic")) as running,
        httpx2.AsyncClient(base_url=f"http://{running.http_url}") as http,
    ):
        refused = await http.post("/v1/answer", json={"question": "a", "context": "b"})
        found = await http.post("/v1/classify", json={"text": "a"})
        models = await http.get("/v2/models/qa")
    assert refused.status_code == 404
    assert "topic, at /v1/classify" in refused.json()["detail"]
    assert found.json()["label"] == "sport"
    assert "served: 'topic' version '1'" in models.json()["detail"]


async def test_variants_and_plans_say_their_task(gateway: Running) -> None:
    """Whoever looks at the catalog as served sees what is what."""
    async with httpx2.AsyncClient(base_url=f"http://{gateway.http_url}") as http:
        served = (await http.get("/v1/variants")).json()
        plan = (await http.post("/v1/plan", json={"task": "topic", "n_tokens": 60})).json()
        pair = (await http.post("/v1/plan", json={**PAIR, "task": "entails"})).json()
    assert {v["name"]: v["task"] for v in served["variants"]} == {
        "small": "qa",
        "large": "qa",
        "entails-small": "entails",
        "topic-small": "topic",
        "topic-large": "topic",
    }
    assert [t["name"] for t in served["tasks"]] == ["topic", "entails"]
    assert "golden_inputs" not in served["tasks"][0]
    assert {o["plan"] for o in plan["options"]} == {"topic-small", "topic-large"}
    assert pair["plan"] == "entails-small"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_the_client_gets_the_same_over_both_protocols(gateway: Running, scheme: str) -> None:
    """A program asks in one line, whichever way."""
    url = f"{scheme}://{gateway.http_url if scheme == 'http' else gateway.grpc_url}"

    def work() -> Any:
        with Client(url, retries=ONCE) as client:
            found = client.classify(*PAIR.values(), task="entails", explain=True)
            plan = client.plan(n_tokens=60, task="topic")
            with pytest.raises(bertier.InvalidRequest, match="task: missing, and several"):
                client.classify("a")
            with pytest.raises(bertier.InvalidRequest, match="'mood' is not served"):
                client.classify("a", task="mood")
            return found, plan

    found, plan = await asyncio.to_thread(work)
    assert (found.label, found.task, found.variant) == ("entailment", "entails", "entails-small")
    assert [s.label for s in found.scores] == ["entailment", "not_entailment"]
    assert found.score == found.scores[0].probability
    assert (found.slo.met, found.slo.min_f1) == (True, pytest.approx(0.68))
    assert found.request_id
    assert [o.plan for o in found.options] == ["entails-small"]
    assert found.cost.largest_variant == "entails-small"
    assert {o.plan for o in plan.options} == {"topic-small", "topic-large"}


async def test_the_async_client_classifies(gateway: Running) -> None:
    """An event loop asks alike."""
    async with bertier.AsyncClient(f"grpc://{gateway.grpc_url}", retries=ONCE) as client:
        assert (await client.classify("The boat left.", task="topic")).label == "sport"


def tensor(module: Any, name: str, texts: list[str]) -> Any:
    made = module.InferInput(name, [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array([t.encode() for t in texts], dtype=object))
    return made


stock = pytest.mark.parametrize(
    ("module", "url_of"),
    [(triton_http, lambda r: r.http_url), (triton_grpc, lambda r: r.grpc_url)],
)


@pytest.mark.parametrize(
    ("path", "body", "task", "outcome"),
    [
        ("/v1/classify", {"text": "a", "task": "topic"}, "topic", "ok"),
        ("/v1/classify", {"text": "a", "task": "mood"}, "unknown", "unknown-task"),
        ("/v1/classify", {"text": 1}, "unknown", "invalid-field"),
        ("/v1/answer", {"question": "Who?"}, "qa", "invalid-field"),
        ("/v2/models/topic/infer", {}, "topic", "invalid-field"),
    ],
)
async def test_requests_are_counted_and_timed_by_task(
    gateway: Running, path: str, body: object, task: str, outcome: str
) -> None:
    """The latency of questions would hide that of a classification; a caller makes no label."""
    async with httpx2.AsyncClient(base_url=f"http://{gateway.http_url}") as http:
        await http.post(path, json=body)
    labels = {"frontend": "http", "slo_class": "standard", "task": task}
    sample = gateway.service.metrics.registry.get_sample_value
    assert sample("bertier_requests_total", {**labels, "outcome": outcome}) == 1
    assert sample("bertier_request_duration_seconds_count", labels) == 1


async def test_requests_over_grpc_are_counted_by_task(gateway: Running) -> None:
    """The task is known once the service has found it."""

    def work() -> None:
        client = triton_grpc.InferenceServerClient(gateway.grpc_url)
        client.infer("topic", [tensor(triton_grpc, "text", ["a"])])
        with Client(f"grpc://{gateway.grpc_url}", retries=ONCE) as own:
            own.classify(*PAIR.values(), task="entails")
            with pytest.raises(bertier.InvalidRequest):
                own.classify("a", task="mood")

    await asyncio.to_thread(work)
    requests = gateway.service.metrics.requests.collect()
    assert {
        (s.labels["task"], s.labels["outcome"])
        for metric in requests
        for s in metric.samples
        if s.value
    } == {("topic", "ok"), ("entails", "ok"), ("unknown", "unknown-task")}


@stock
async def test_a_model_may_come_with_the_first_catalog(
    gateway: Running, module: Any, url_of: Callable[[Running], str]
) -> None:
    """Until then nobody knows which classifications are served, so none is unknown: come again."""
    gateway.service.serving = None

    def work() -> tuple[bool, str]:
        client = module.InferenceServerClient(url_of(gateway))
        with pytest.raises(InferenceServerException) as refused:
            client.infer("topic", [tensor(module, "text", ["a"])])
        return client.is_model_ready("topic"), str(refused.value)

    ready, refused = await asyncio.to_thread(work)
    assert not ready
    assert "no catalog is loaded yet" in refused
    assert "503" in refused or "UNAVAILABLE" in refused


@stock
async def test_a_stock_client_classifies(
    gateway: Running, module: Any, url_of: Callable[[Running], str]
) -> None:
    """A task is a model of the protocol: several texts in, labels and a row of probabilities a text out."""

    def work() -> tuple[Any, Any, Any]:
        client = module.InferenceServerClient(url_of(gateway))
        as_json = {"as_json": True} if module is triton_grpc else {}
        inputs = [tensor(module, n, [t, t]) for n, t in PAIR.items()]
        parameters = {"slo_min_f1": "0.5"}
        found = client.infer("entails", inputs, parameters=parameters)
        metadata = client.get_model_metadata("entails", **as_json)
        return found, metadata, client.get_model_config("topic", **as_json)

    found, metadata, config = await asyncio.to_thread(work)
    assert found.as_numpy("label").tolist() == [b"entailment"] * 2
    assert found.as_numpy("variant").tolist() == [b"entails-small"] * 2
    probabilities = found.as_numpy("probabilities")
    assert probabilities.shape == (2, 2)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.allclose(probabilities[:, 0], found.as_numpy("score"))
    assert [i["name"] for i in metadata["inputs"]] == ["text", "text_pair"]
    shapes = {o["name"]: [int(n) for n in o["shape"]] for o in metadata["outputs"]}
    assert shapes["probabilities"] == [-1, 2]
    config = config.get("config", config)
    assert json.loads(config["parameters"]["labels"]["string_value"]) == ["sport", "city", "river"]


@stock
async def test_a_stock_client_is_told_what_is_served(
    gateway: Running, module: Any, url_of: Callable[[Running], str]
) -> None:
    """A model that is not there, and inputs of another task."""

    def ask(model: str, *names: str) -> str:
        client = module.InferenceServerClient(url_of(gateway))
        with pytest.raises(InferenceServerException) as refused:
            client.infer(model, [tensor(module, name, ["a"]) for name in names])
        return str(refused.value)

    unknown = await asyncio.to_thread(ask, "mood", "text")
    wrong = await asyncio.to_thread(ask, "topic", "question", "context")
    assert "served: 'qa', 'topic', 'entails' version '1'" in unknown
    assert "send ['text']" in wrong
