"""Answers of the real system: the same over every protocol, by the variant that the SLO asks for."""

from __future__ import annotations

import httpx2
import pytest

from gateway.catalog import store
from gateway.catalog.store import Catalog
from loadtest.quality import agreement
from loadtest.stack import Stack
from optimizer.data.question_sets import Example
from tests.end_to_end.conftest import REPOSITORY, until

pytestmark = pytest.mark.end_to_end
CONTEXT = "The ferry to Lindholm leaves at seven. Its captain, Ida Møller, has sailed since 1989."
BODY = {"question": "Who is the captain of the ferry?", "context": CONTEXT}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return store.read(REPOSITORY)


def post(
    stack: Stack, headers: dict[str, str], body: dict[str, object] | None = None
) -> httpx2.Response:
    return httpx2.post(
        f"{stack.http_url}/v1/answer", json=body or BODY, headers=headers, timeout=60
    )


async def test_every_frontend_gives_the_answer_of_the_offline_evaluation(
    stack: Stack, examples: list[Example]
) -> None:
    """What was certified is what is served, whichever protocol asks."""
    found = await agreement.agreement(stack, REPOSITORY, examples)
    assert {c.different for c in found} == {0}, found
    assert len(found) == 3 * len(store.read(REPOSITORY).variants)


async def test_answers_do_not_depend_on_concurrency(stack: Stack, examples: list[Example]) -> None:
    """Dynamic INT8 would change answers with its batch-mates, so it has none."""
    found = await agreement.invariance(stack, REPOSITORY, examples)
    assert {c.different for c in found} == {0}, found


def test_a_low_floor_gets_the_cheapest_plan(stack: Stack, catalog: Catalog) -> None:
    """The smallest sufficient model answers: of those that differ by little, the cheapest on this host."""
    slo = {"SLO-Min-F1": "0.01", "SLO-Latency-Ms": "60000"}
    asked = httpx2.post(f"{stack.http_url}/v1/plan", json=BODY, headers=slo, timeout=60)
    cost_ms = {o["plan"]: o["cost_ms"] for o in asked.json()["options"]}
    reply = post(stack, slo)
    assert reply.headers["SLO-Plan"] == min(cost_ms, key=lambda name: cost_ms[name])
    assert cost_ms[reply.headers["SLO-Plan"]] < cost_ms[largest(catalog)] / 2
    variants = httpx2.get(f"{stack.http_url}/v1/variants", timeout=60).json()["variants"]
    trust = {v["name"]: v["trust"] for v in variants}[reply.headers["SLO-Variant"]]
    holds = trust != "uncertified"  # the host may compute other logits than those certified
    assert reply.headers["SLO-Met"] == ("true" if holds else "uncertified")


def largest(catalog: Catalog) -> str:
    return max(catalog.variants, key=lambda v: v.size_bytes).name


def test_the_largest_floor_gets_the_most_accurate_variant(stack: Stack, catalog: Catalog) -> None:
    """A request that asks for more gets a larger model."""
    best = max(catalog.plans, key=lambda p: p.certified_f1)
    slo = {"SLO-Min-F1": f"{best.certified_f1:.4f}", "SLO-Latency-Ms": "60000"}
    # After the test before it can seem to hang on a full host, or to take long; that is soon forgotten.
    until(lambda: post(stack, slo).headers.get("SLO-Plan") == best.name)
    reply = post(stack, slo)
    assert reply.headers["SLO-Plan"] == best.name, reply.text
    assert float(reply.headers["SLO-F1"]) == pytest.approx(best.certified_f1, abs=1e-3)


def test_a_loss_is_kept_by_the_plan_that_answers(stack: Stack, catalog: Catalog) -> None:
    """What is certified close enough to the largest variant answers, and says which variant did."""
    losses = {p.name: p.certified_loss for p in catalog.plans if len(p.variants) > 1}
    least = min(loss for loss in losses.values() if loss is not None)
    reply = post(stack, {"SLO-Max-F1-Loss": f"{least:.4f}", "SLO-Latency-Ms": "60000"})
    plan = next(p for p in catalog.plans if p.name == reply.headers["SLO-Plan"])
    assert float(reply.headers["SLO-F1-Loss"]) == plan.certified_loss
    assert plan.certified_loss is not None
    assert plan.certified_loss <= least
    assert reply.headers["SLO-Variant"] in plan.variants


def test_a_strict_floor_nobody_certifies_is_refused_with_what_is_feasible(stack: Stack) -> None:
    """A refusal says what could be had instead, of what is certified on this host."""
    variants = httpx2.get(f"{stack.http_url}/v1/variants", timeout=30).json()["variants"]
    trusted = any(v["trust"] != "uncertified" for v in variants)
    reply = post(stack, {"SLO-Min-F1": "0.999", "SLO-Policy": "strict"})
    assert reply.status_code == 422
    assert bool(reply.json()["nearest"]) == trusted


def test_a_long_context_is_answered_from_its_far_end(stack: Stack) -> None:
    """Windows cover the whole context, and offsets are of the whole context."""
    filler = "The harbour office keeps a log of every crate that is unloaded. " * 1400
    context = filler[: 100_000 - len(CONTEXT)] + CONTEXT
    headers = {"SLO-Latency-Ms": "60000", "SLO-Min-F1": "0.01"}
    reply = post(stack, headers, BODY | {"context": context, "top_k": 20})
    payload = reply.json()
    assert reply.status_code == 200
    assert all(context[a["start"] : a["end"]] == a["answer"] for a in payload["alternatives"])
    assert any(a["start"] > len(filler) - 1000 for a in payload["alternatives"])


def test_offsets_count_code_points(stack: Stack) -> None:
    """An answer is an exact substring, whatever scripts and emoji come before it."""
    context = "🚢🚢 \uff2c\uff49\uff4e 東京 e\u0301te\u0301. " + CONTEXT
    payload = post(
        stack, {"SLO-Latency-Ms": "60000"}, BODY | {"context": context, "top_k": 5}
    ).json()
    assert payload["alternatives"]
    assert all(context[a["start"] : a["end"]] == a["answer"] for a in payload["alternatives"])
