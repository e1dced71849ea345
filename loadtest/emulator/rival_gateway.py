"""A real gateway in which a rival of the lab chooses: `python -m loadtest.emulator.rival_gateway --policy NAME ...`.

Everything else is the gateway that serves: frontends, predictions, deadlines, Triton. Its refusal of requests
before they are read is ours and is left out, as are cascades.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from gateway import app
from gateway import settings as gateway_settings
from gateway.backends.protocol import Backend
from gateway.catalog import store
from gateway.catalog.host import usable_cores
from gateway.catalog.schema import QA
from gateway.domain import Decision, Option, Reason, Slo, SloPolicy, SloRequest
from gateway.observability.metrics import Metrics
from gateway.request.service import Admission, AnswerService
from gateway.routing import policy
from gateway.routing.admission_queue import Waiting
from gateway.settings import Settings
from loadtest.lab import contenders, recording
from loadtest.lab.engine import Policy
from loadtest.lab.rivals import RIVALS_QUANTILE
from loadtest.lab.traces import TraceRequest
from loadtest.lab.world import Times, World

PORTS = ("http_port", "grpc_port", "triton_grpc_port", "triton_metrics_port")


class Rival:
    """Chooses as a policy of the lab does, from plans of one variant (gateway.routing.router.Chooser)."""

    def __init__(self, rival: Policy) -> None:
        self._rival = rival
        self._began_s = time.monotonic()

    def quantile_for(self, _: SloPolicy, /) -> float:
        return RIVALS_QUANTILE

    def choose_early(self, *_: object) -> None:
        """Rivals see all plans."""

    def choose(
        self, slo: Slo, options: Sequence[Option], spent_ms: float, failing: Collection[str], /
    ) -> Decision:
        """Return what the rival takes. It knows of no failure and of no pinned variant."""
        now_ms = (time.monotonic() - self._began_s) * 1e3
        direct = [o for o in options if len(o.plan.variants) == 1]
        option = self._rival.decide(TraceRequest(0, now_ms, slo, 0), direct, spent_ms, now_ms)
        if option is None:
            return Decision(None, Reason.BUSY)
        return Decision(option, Reason.MEETS_SLO, policy.find_violations(option, slo, spent_ms))


class RivalService(AnswerService):
    """Reads everything that comes."""

    async def admit(self, request: SloRequest, frontend: str, task: str | None = QA) -> Admission:
        serving = self._serving(task)
        slo = self._resolve(request, serving)
        return Admission(slo, serving, Waiting(slo, self._clock(), None), 0.0)

    def leave(self, admission: Admission) -> None:
        """It was not counted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped."""
    args = _parser().parse_args(argv)
    catalog = store.read_questions(args.model_repository)
    recorded = recording.of_catalog(args.model_repository, None, args.questions, args.recorded)
    world = World(catalog, recorded, usable_cores(), Times.RECORDED)
    rival = contenders.make(args.policy, world, {args.policy: json.loads(args.parameters)}, seed=1)
    ports = {name: getattr(args, name) for name in PORTS}
    settings = gateway_settings.read(model_repository=args.model_repository, **ports)
    return app.serve(settings, partial(_service, Rival(rival)))


def _service(rival: Rival, backend: Backend, settings: Settings, metrics: Metrics) -> AnswerService:
    return RivalService(backend, settings, metrics, chooser=rival)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rival-gateway", description=__doc__)
    add = parser.add_argument
    add("--policy", required=True)
    add("--parameters", default="{}", help="JSON")
    add("--recorded", type=Path, required=True, help="folder of recorded answers")
    add("--questions", type=int, help="of the shipped sample; default: all")
    add("--model-repository", type=Path, required=True)
    for name in PORTS:
        add(f"--{name.replace('_', '-')}", type=int, required=True)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
