"""Locust users of a gateway: real questions over HTTP and gRPC, SLO classes by weight.

    locust -f loadtest/locust/locustfile.py --host http://127.0.0.1:8080 --grpc-target 127.0.0.1:8081

opens the web UI on port 8089; `bertier-loadtest locust` runs it without one. Each user asks
`--rate-per-user` questions a second. A missed deadline is a failure in Locust's
statistics; F1 and floor are entries of their own, times 1000. Locust's users wait for their
answers: for what they then leave out there is `bertier-loadtest drive`.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gevent
import grpc
from grpc.experimental import gevent as grpc_gevent
from locust import FastHttpUser, LoadTestShape, User, events, task
from locust.env import Environment

from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from loadtest.locust import swarm
from loadtest.locust.swarm import Counted
from loadtest.sample import questions
from optimizer.data import evaluate
from optimizer.data.question_sets import Example

grpc_gevent.init_gevent()

PATIENCE_S = 30.0
PROBE_S = 5.0
F1, FLOOR = "F1 x 1000", "floor x 1000"
log = logging.getLogger(__name__)


@dataclass
class Run:
    """What this process knows of the run."""

    examples: list[Example] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    broken: str = ""

    def draw(self) -> tuple[Example, str]:
        (slo_class,) = self.rng.choices(list(self.weights), list(self.weights.values()))
        return self.rng.choice(self.examples), slo_class


RUN = Run()


class Broken(Exception):
    """A missed SLO, which Locust lists among failures."""


class _Asking:
    """What both kinds of users do: pace themselves, and judge an answer."""

    environment: Environment
    _due_s: float = 0.0

    def wait_time(self) -> float:
        """Keep to the rate, also after an answer that took long: then the next is asked at once."""
        options = self.environment.parsed_options
        assert options is not None
        now_s = time.perf_counter()
        gap_s = swarm.gap_s(options.arrivals, options.rate_per_user, RUN.rng)
        self._due_s = (self._due_s or now_s) + gap_s
        return max(0.0, self._due_s - now_s)

    def judge(
        self, example: Example, slo_class: str, answered: Mapping[str, Any], ms: float
    ) -> str:
        """Record the answer's F1; return "late" if it missed its deadline, else an empty string."""
        stats = self.environment.stats
        f1 = evaluate.f1(answered["answer"], example.answers)
        stats.get(slo_class, F1).log(round(1e3 * f1), 0)
        stats.get(slo_class, FLOOR).log(round(1e3 * answered["min_f1"]), 0)
        return "late" if ms > answered["latency_ms"] else ""

    def check(self) -> None:
        """Is the gateway still there, after a request that did not reach it?"""
        if not RUN.broken and (problem := _absent(self.environment)):
            _break(self.environment, f"{problem}, in the middle of the run")


class HttpUser(_Asking, FastHttpUser):
    """Asks over HTTP."""

    weight = 1
    network_timeout = connection_timeout = PATIENCE_S

    @task
    def ask(self) -> None:
        example, slo_class = RUN.draw()
        payload = {"question": example.question, "context": example.context}
        said = {"SLO-Class": slo_class, "Content-Type": "application/json"}
        with self.client.post(
            "/v1/answer",
            data=json.dumps(payload),
            headers=said,
            name=slo_class,
            catch_response=True,
        ) as reply:
            if reply.status_code == 200:
                body = reply.json()
                answered = {"answer": body["answer"], **body["slo"]}
                ms = reply.request_meta["response_time"]
                if broke := self.judge(example, slo_class, answered, ms):
                    reply.failure(Broken(broke))
            elif reply.status_code == 0:
                reply.failure(Broken("no reply"))
                self.check()
            else:
                reply.failure(Broken(f"{reply.status_code}: {_kind(reply.text)}"))


def _kind(text: str | None) -> str:
    """Return the failure's stable word; its detail differs from request to request."""
    try:
        return str(json.loads(text or "")["type"]).rpartition(":")[2]
    except (ValueError, KeyError, TypeError):
        return "no problem document"


class GrpcUser(_Asking, User):
    """Asks over gRPC."""

    weight = 1
    target: ClassVar[str] = ""

    def on_start(self) -> None:
        self._channel = grpc.insecure_channel(self.target)
        stub = qa_pb2_grpc.QuestionAnsweringStub(self._channel)
        self._stub = stub

    def on_stop(self) -> None:
        self._channel.close()

    @task
    def ask(self) -> None:
        example, slo_class = RUN.draw()
        request = qa_pb2.AnswerRequest(question=example.question, context=example.context)
        broke, began = "", time.perf_counter()
        try:
            reply = self._stub.Answer(
                request, metadata=(("slo-class", slo_class),), timeout=PATIENCE_S
            )
            ms = (time.perf_counter() - began) * 1e3
            slo = reply.slo
            answered = {"answer": reply.answer, "latency_ms": slo.latency_ms, "min_f1": slo.min_f1}
            broke = self.judge(example, slo_class, answered, ms)
        except grpc.RpcError as exc:
            ms = (time.perf_counter() - began) * 1e3
            metadata: Any = exc.trailing_metadata() or ()  # pairs, whatever its type says
            kinds = {str(key): value for key, value in metadata}
            broke = f"{exc.code().name}: {kinds.get('error-type', 'no reply')}"
            if "error-type" not in kinds:
                self.check()
        self.environment.events.request.fire(
            request_type="gRPC",
            name=slo_class,
            response_time=ms,
            response_length=0,
            exception=Broken(broke) if broke else None,
            context={},
        )


class Shape(LoadTestShape):
    """How many users there are over the run; `--users` at the most, for `--run-time`."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        at_s, users = self.get_run_time(), options.num_users or 1
        if options.run_time and at_s >= options.run_time:
            return None
        at = at_s / options.run_time if options.run_time else 1.0
        return swarm.users_at(options.shape, at, users), options.spawn_rate or users


@events.init_command_line_parser.add_listener
def _flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--grpc-target", default="", help="HOST:PORT; empty: nobody asks over gRPC")
    add("--slo-weights", default="interactive=2,standard=3,batch=1", help="share of each class")
    add("--arrivals", choices=("open", "constant"), default="open", help="gaps between questions")
    add("--shape", choices=swarm.SHAPES, default="steady", help="of the number of users")
    add("--rate-per-user", type=float, default=1.0, help="questions a second")
    add("--min-attainment", type=float, default=0.0, help="joint; below it the exit code is 1")


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    try:
        RUN.weights = swarm.weights(options.slo_weights)
    except swarm.BadWeights as exc:
        print(f"--slo-weights: {exc}", file=sys.stderr)
        sys.exit(1)
    RUN.examples = questions(None)
    GrpcUser.target = options.grpc_target
    if not options.grpc_target:
        environment.user_classes = [u for u in environment.user_classes if u is not GrpcUser]
    if environment.web_ui is not None and (app := environment.web_ui.app) is not None:
        app.add_url_rule("/attainment", "attainment", lambda: _as_json(environment))


def _as_json(environment: Environment) -> dict[str, Any]:
    return swarm.as_json(_counted(environment), _verdict(environment))


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    RUN.broken = ""
    if problem := _absent(environment, "/readyz"):
        _break(environment, problem)


@events.quitting.add_listener
def _quitting(environment: Environment, **_: Any) -> None:
    """Decide on the exit code, and let no statistics of a broken run be printed."""
    counted, verdict = _counted(environment), _verdict(environment)
    environment.process_exit_code = verdict.exit_code
    if RUN.broken:
        counted = {}
        environment.stats.clear_all()
    events.quit.add_listener(lambda **_: _tell(counted, verdict))


def _absent(environment: Environment, path: str = "/healthz") -> str:
    """Return why the gateway cannot be measured; empty: it is there."""
    url = f"{(environment.host or '').rstrip('/')}{path}"
    try:
        with urllib.request.urlopen(url, timeout=PROBE_S):
            return ""
    except urllib.error.HTTPError as exc:
        return f"{url} says {exc.code}: {exc.read()[:200].decode(errors='replace')}"
    except (OSError, ValueError) as exc:
        return f"{url}: {getattr(exc, 'reason', exc)}"


def _break(environment: Environment, reason: str) -> None:
    RUN.broken = reason
    log.error("%s; the run ends here", reason)
    assert environment.runner is not None
    # Not from within a user or an event, which the end would wait for.
    gevent.spawn(environment.runner.stop if environment.web_ui else environment.runner.quit)


def _counted(environment: Environment) -> dict[str, Counted]:
    entries = environment.stats.entries
    found = {}
    for slo_class in RUN.weights:
        asked = [e for way in ("POST", "gRPC") if (e := entries.get((slo_class, way)))]
        f1, floor = (entries.get((slo_class, kind)) for kind in (F1, FLOOR))
        n, failures = sum(e.num_requests for e in asked), sum(e.num_failures for e in asked)
        means = (f1.avg_response_time / 1e3, floor.avg_response_time / 1e3) if f1 and floor else ()
        found[slo_class] = Counted(n, failures, *means)
    return found


def _verdict(environment: Environment) -> swarm.Verdict:
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    busy = runner is not None and runner.cpu_warning_emitted
    return swarm.judge(_counted(environment), options.min_attainment, RUN.broken, busy=busy)


def _tell(counted: Mapping[str, Counted], verdict: swarm.Verdict) -> None:
    print(f"{'class':<14}{'n':>8}{'in time':>10}{'F1':>8}{'floor':>8}{'joint':>8}")
    for name, c in counted.items():
        print(f"{name:<14}{c.n:>8}{c.in_time:>10.3f}{c.f1:>8.3f}{c.floor:>8.3f}{c.joint:>8.3f}")
    if verdict.reason:
        print(verdict.reason, file=sys.stderr)
    print(json.dumps(swarm.as_json(counted, verdict), sort_keys=True), flush=True)
