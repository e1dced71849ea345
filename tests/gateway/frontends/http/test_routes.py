"""The HTTP frontend, asked over ASGI, with a small fake in place of the model server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.backends import breaker
from gateway.clock import now_ms
from gateway.domain import Size
from gateway.frontends.http import report_schemas
from tests.asgi import QUESTION_BODY, client, make_service, outcome, post
from tests.fakes import (
    CONTEXT,
    QUESTION,
    paired_small_and_large,
    serving_set,
    small_and_large,
    with_answerable,
)


async def test_an_answer_is_an_exact_piece_of_the_context() -> None:
    """Callers highlight by offsets."""
    answer = (await post(make_service(), json=QUESTION_BODY)).json()
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]] != ""
    assert 0.0 <= answer["score"] <= 1.0
    assert answer["alternatives"] == []


async def test_an_answer_says_what_it_was_given_under() -> None:
    """The SLO and its outcome can be read without parsing the body."""
    response = await post(make_service(), json=QUESTION_BODY, headers={"SLO-Min-F1": "0.6"})
    assert response.status_code == 200
    assert response.headers["slo-plan"] == response.headers["slo-variant"] == "large"
    assert response.headers["slo-f1"] == "0.7000"
    assert response.headers["slo-met"] == response.json()["slo"]["met"] == "true"
    idle_p95_ms = 1.5 * (20 + 2)
    assert idle_p95_ms < float(response.headers["slo-predicted-ms"]) < 1.3 * idle_p95_ms
    stages = [part.split(";dur=")[0] for part in response.headers["server-timing"].split(", ")]
    assert stages == ["tokenize", "route", "queue", "infer", "decode", "total"]


@pytest.mark.parametrize(
    ("headers", "variant"),
    [
        ({"SLO-Min-F1": "0.4"}, "small"),
        ({"SLO-Min-F1": "0.6"}, "large"),
        ({"X-SLO-Min-F1": "0.6"}, "large"),
        ({"SLO-Latency-Ms": "15"}, "small"),
        ({}, "large"),
        ({"SLO-Variant": "small"}, "small"),
    ],
)
async def test_the_headers_choose_the_variant(headers: dict[str, str], variant: str) -> None:
    """This is what the gateway is for."""
    response = await post(make_service(), json=QUESTION_BODY, headers=headers)
    assert response.json()["variant"] == variant


async def test_explain_shows_the_rejection_reasons_of_each_option() -> None:
    """A choice that cannot be explained cannot be trusted."""
    headers = {"SLO-Min-F1": "0.6", "SLO-Explain": "1"}
    explain = (await post(make_service(), json=QUESTION_BODY, headers=headers)).json()["explain"]
    small, large = explain["options"]
    assert explain["reason"] == "meets_slo"
    assert (small["rejection_reasons"], small["chosen"]) == (["below-floor"], False)
    assert (large["rejection_reasons"], large["chosen"]) == ([], True)
    assert large["certified_f1"] == 0.7


async def test_a_loss_to_the_largest_variant_can_be_asked_for() -> None:
    """The header chooses, and answer, headers and explanation say what is certified."""
    service = make_service()
    service.serving = serving_set(paired_small_and_large())
    headers = {"SLO-Max-F1-Loss": "0.15", "SLO-Explain": "1"}
    response = await post(service, json=QUESTION_BODY, headers=headers)
    body = response.json()
    assert (body["variant"], body["slo"]["met"]) == ("small", "true")
    assert (body["slo"]["max_f1_loss"], body["slo"]["certified_f1_loss"]) == (0.15, 0.15)
    assert response.headers["slo-f1-loss"] == "0.1500"
    assert [o["certified_f1_loss"] for o in body["explain"]["options"]] == [0.15, 0.0]
    tighter = await post(service, json=QUESTION_BODY, headers={"SLO-Max-F1-Loss": "0.1"})
    assert tighter.json()["variant"] == "large"
    item = QUESTION_BODY | {"slo": {"max_f1_loss": 0.15}}
    (line,) = (await post(service, "/v1/answers", json=[item])).text.splitlines()
    assert json.loads(line)["variant"] == "small"


async def test_a_floor_on_answerable_questions_can_be_asked_for() -> None:
    """By header, by an item of a list, and sent back; a malformed one is refused by name."""
    service, catalog = make_service(), small_and_large()
    floors = (0.4, 0.6)
    plans = tuple(with_answerable(p, f) for p, f in zip(catalog.plans, floors, strict=True))
    service.serving = serving_set(replace(catalog, plans=plans))
    body = (
        await post(service, json=QUESTION_BODY, headers={"SLO-Min-Answerable-F1": "0.4"})
    ).json()
    assert (body["variant"], body["slo"]["met"]) == ("small", "true")
    assert (body["slo"]["min_answerable_f1"], body["slo"]["certified_answerable_f1"]) == (0.4, 0.4)
    item = QUESTION_BODY | {"slo": {"min_answerable_f1": 0.5}}
    (line,) = (await post(service, "/v1/answers", json=[item])).text.splitlines()
    assert json.loads(line)["variant"] == "large"
    headers = {"SLO-Min-Answerable-F1": "0.7", "SLO-Policy": "strict"}
    refused = await post(service, json=QUESTION_BODY, headers=headers)
    assert refused.status_code == 422
    assert "0.700 of questions with an answer" in refused.json()["detail"]
    malformed = await post(service, json=QUESTION_BODY, headers={"SLO-Min-Answerable-F1": "1.2"})
    assert "SLO-Min-Answerable-F1" in malformed.json()["detail"]


async def test_a_loss_that_no_plan_is_certified_for_is_refused_with_the_reason() -> None:
    """Of a catalog without such certificates the caller learns what to do instead."""
    service = make_service()
    headers = {"SLO-Max-F1-Loss": "0.1", "SLO-Policy": "strict"}
    refused = await post(service, json=QUESTION_BODY, headers=headers)
    assert refused.status_code == 422
    assert "certifies no loss to the largest variant" in refused.json()["detail"]
    service.serving = serving_set(paired_small_and_large())
    headers["SLO-Latency-Ms"] = "25"
    near = (await post(service, json=QUESTION_BODY, headers=headers)).json()
    assert "0.100 below the largest variant's" in near["detail"]
    assert [p["certified_f1_loss"] for p in near["nearest"]] == [0.15, 0.0]


async def test_explain_tells_quantiles_wait_and_every_constraint_of_each_plan() -> None:
    """Whoever asks why must not have to guess what was known."""
    service = make_service(classes={})
    assert service.serving is not None
    latency = service.serving.latency
    latency.leave(latency.begin("large", Size(64, 1), now_ms()), now_ms())
    latency.set_external(
        {"large": 60}, now_ms()
    )  # beside the work of others one request is admitted
    for _ in range(breaker.IN_A_ROW):
        service.serving.breakers.of("large").begin(now_ms()).failed(now_ms())
    headers = {"SLO-Min-F1": "0.6", "SLO-Latency-Ms": "60", "Priority": "u=7", "SLO-Explain": "1"}
    explain = (await post(service, json=QUESTION_BODY, headers=headers)).json()["explain"]
    small, large = explain["options"]
    assert large["rejection_reasons"] == ["late", "deadline", "failing"]
    assert small["chosen"]
    assert explain["quantile"] == 0.95
    assert 0 <= explain["spent_ms"] < 60
    for option in (small, large):
        assert 0 < option["p50_ms"] < option["p95_ms"] < option["p99_ms"]
        assert option["p95_ms"] == option["predicted_ms"]
        assert 0 < option["wait_ms"] < option["predicted_ms"] - option["idle_ms"]
    assert large["wait_ms"] > small["wait_ms"] >= 0


async def test_a_pinned_variant_rejects_the_others() -> None:
    """What was not free to be chosen was not beaten."""
    headers = {"SLO-Variant": "small", "SLO-Explain": "1"}
    explain = (await post(make_service(), json=QUESTION_BODY, headers=headers)).json()["explain"]
    rejected = {o["plan"]: o["rejection_reasons"] for o in explain["options"]}
    assert rejected == {"small": ["below-floor"], "large": ["pinned"]}


async def test_without_explain_the_body_has_none() -> None:
    """The common answer stays short."""
    assert "explain" not in (await post(make_service(), json=QUESTION_BODY)).json()


async def test_alternatives_and_id_come_back_when_asked_for() -> None:
    """Callers match answers by id and show the runners-up."""
    answer = (await post(make_service(), json=QUESTION_BODY | {"id": "q1", "top_k": 3})).json()
    assert answer["id"] == "q1"
    assert len(answer["alternatives"]) == 3
    for span in answer["alternatives"]:
        assert CONTEXT[span["start"] : span["end"]] == span["answer"]


async def test_offsets_count_code_points() -> None:
    """One emoji is one position, whatever its bytes."""
    context = "🙂🙂 Éric gave 😀 their name"
    answer = (await post(make_service(), json={"question": QUESTION, "context": context})).json()
    assert context[answer["start"] : answer["end"]] == answer["answer"] != ""


async def test_an_unknown_class_counts_under_a_bounded_label() -> None:
    """A caller cannot fill the metrics store."""
    service = make_service()
    await post(service, json=QUESTION_BODY, headers={"SLO-Class": "x" * 50})
    assert outcome(service, "unknown", "unknown-class") == 1


async def test_no_model_yet_is_503() -> None:
    """The port is open before the models are loaded."""
    service = make_service()
    service.serving = None
    async with client(service) as http:
        assert (await http.post("/v1/answer", json=QUESTION_BODY)).status_code == 503
        assert (await http.get("/v1/variants")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["models are being loaded"]


@pytest.mark.parametrize(
    ("headers", "feasible", "plan", "reason"),
    [
        ({}, True, "large", "meets_slo"),
        ({"SLO-Latency-Ms": "15", "SLO-Min-F1": "0.6"}, False, "small", "most_accurate_in_time"),
        (
            {"SLO-Latency-Ms": "15", "SLO-Min-F1": "0.6", "SLO-Policy": "strict"},
            False,
            None,
            "infeasible",
        ),
    ],
)
async def test_a_plan_says_whether_an_slo_could_be_met(
    headers: dict[str, str], feasible: bool, plan: str | None, reason: str
) -> None:
    """A client chooses its SLO without spending an inference."""
    service = make_service()
    report = (await post(service, "/v1/plan", headers=headers)).json()
    assert (report["feasible"], report["plan"], report["reason"]) == (feasible, plan, reason)
    assert [point["plan"] for point in report["nearest"]] != []
    assert service.backend.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "n_tokens", "n_windows"),
    [
        ({"n_tokens": 100}, 128, 1),
        ({"n_tokens": 1000}, 384, 4),
        (QUESTION_BODY, 64, 1),
        ({}, 192, 1),
    ],
)
async def test_a_plan_is_for_a_size(body: dict[str, Any], n_tokens: int, n_windows: int) -> None:
    """Latency depends on how much there is to read."""
    report = (await post(make_service(), "/v1/plan", json=body)).json()
    assert (report["n_tokens"], report["n_windows"]) == (n_tokens, n_windows)


async def test_a_plan_needs_both_texts_or_neither() -> None:
    """Half a request has no size."""
    response = await post(make_service(), "/v1/plan", json={"question": "x"})
    assert response.status_code == 422


async def test_variants_shows_the_catalog_as_served() -> None:
    """What the certificate says, and whether it holds here."""
    async with client(make_service()) as http:
        report = (await http.get("/v1/variants")).json()
    assert [(v["name"], v["served"], v["trust"]) for v in report["variants"]] == [
        ("small", True, "certified"),
        ("large", True, "certified"),
    ]
    assert [p["certificate"]["floor"] for p in report["plans"]] == [0.5, 0.7]
    assert "golden" not in report["variants"][0]


async def test_readyz_shows_backend_and_trust() -> None:
    """On-call looks here first."""
    async with client(make_service()) as http:
        response = await http.get("/readyz")
    body = response.json()
    assert (response.status_code, body["ready"], body["backend"]) == (200, True, "fake")
    large = {
        "served": True,
        "trust": "certified",
        "problem": None,
        "failing": False,
        "measured_under_load": False,
        "confidence_shifted": False,
        "host_differs": None,
    }
    assert body["variants"]["large"] == large
    assert body["retry_in_ms"] is None


async def test_metrics_count_requests_by_class_and_outcome() -> None:
    """The dashboards read these names."""
    service = make_service()
    await post(service, json=QUESTION_BODY, headers={"SLO-Class": "batch"})
    async with client(service) as http:
        text = (await http.get("/metrics")).text
    assert (
        'bertier_requests_total{frontend="http",outcome="ok",slo_class="batch",task="qa"} 1.0'
        in text
    )
    assert (
        'bertier_request_duration_seconds_count{frontend="http",slo_class="batch",task="qa"} 1.0'
        in text
    )


async def test_openapi_tells_bodies_headers_and_problems() -> None:
    """Clients are generated from it; every reference must lead somewhere."""
    async with client(make_service()) as http:
        document = (await http.get("/openapi.json")).json()
    answer = document["paths"]["/v1/answer"]["post"]
    headers = {p["name"] for p in answer["parameters"]}
    assert {"SLO-Latency-Ms", "SLO-Min-F1", "SLO-Class", "SLO-Policy", "Priority"} <= headers
    assert {
        *("200", "400", "401", "403", "404", "408", "413", "415", "422", "429"),
        *("500", "503", "504"),
    } == set(answer["responses"])
    assert "SLO-Met" in answer["responses"]["200"]["headers"]
    text = json.dumps(document)
    for name in text.split("#/components/schemas/")[1:]:
        assert name.split('"')[0] in document["components"]["schemas"]


async def test_openapi_tells_of_keys_and_of_no_failures_but_problems() -> None:
    """A generated client must send its key, and read a failure by the model that comes."""
    async with client(make_service()) as http:
        document = (await http.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert {} in document["security"]
    assert "ValidationError" not in json.dumps(document)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("401" in operation["responses"]) == (operation.get("security") != []), path
            failures = [r for status, r in operation["responses"].items() if status[0] in "45"]
            kinds = {kind for failure in failures for kind in failure["content"]}
            assert kinds <= {"application/problem+json"} or path == "/readyz"
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert "InferBody" in json.dumps(infer["requestBody"])
    assert "InferReplyBody" in json.dumps(infer["responses"]["200"])
    assert {"model", "SLO-Min-F1"} <= {p["name"] for p in infer["parameters"]}
    tracked = [
        operation for methods in document["paths"].values() for operation in methods.values()
    ]
    names = [operation["operationId"] for operation in tracked]
    assert len(set(names)) == len(names)


async def test_reports_are_what_their_schemas_say() -> None:
    """They are made of the values themselves, beside the models of the document."""
    service = make_service()
    async with client(service) as http:
        variants, ready = await http.get("/v1/variants"), await http.get("/readyz")
    report_schemas.CatalogReport.model_validate_json(variants.content)
    report_schemas.ReadinessReport.model_validate_json(ready.content)


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/readyz", "/metrics", "/v1/variants", "/openapi.json", "/v2", "/v2/models/qa"],
)
async def test_head_is_answered_wherever_get_is(path: str) -> None:
    """Monitors and balancers ask with it, and want the headers alone."""
    async with client(make_service()) as http:
        head, get = await http.head(path), await http.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    same = ("content-type",) if path == "/metrics" else ("content-type", "content-length")
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]


async def test_head_is_refused_where_there_is_no_get() -> None:
    """It must not ask a question."""
    service = make_service()
    async with client(service) as http:
        assert (await http.head("/v1/answer")).status_code == 405
        assert (await http.head("/nothing")).status_code == 404
