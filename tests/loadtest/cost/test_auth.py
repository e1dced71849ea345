"""What is measured of wrong keys is a real gateway's denial of them."""

from __future__ import annotations

import os
from pathlib import Path

from gateway import api_keys
from gateway.api_keys import ApiKey
from loadtest.cost.auth import measure
from loadtest.sample import questions
from loadtest.stack import Stack
from tests import live


async def test_questions_are_answered_beside_a_flood_of_wrong_keys() -> None:
    """Every question with the right key, over either frontend; every wrong key is denied, and counted."""
    key = api_keys.new_key()
    own = {"driver": ApiKey(sha256=api_keys.digest(key))}
    async with live.gateway(api_keys=own) as running:
        stack = Stack(f"http://{running.http_url}", running.grpc_url, "", "", os.getpid(), Path())
        asked = (stack, key, "small", questions(None, 50))
        frontends = await measure(*asked, rate=20.0, wrong_per_s=40.0, seconds=2.0, block_s=0.5)
        registry = running.service.metrics.registry
        for frontend in frontends:
            labels = {"frontend": frontend.name.lower(), "reason": "unknown"}
            denied = registry.get_sample_value("bertier_denied_total", labels) or 0.0
            assert (
                0 < frontend.denied <= denied <= frontend.denied + 4
            )  # some are cut off at the end
            assert len(frontend.alone.latencies_ms) == len(frontend.beside.latencies_ms) == 10
