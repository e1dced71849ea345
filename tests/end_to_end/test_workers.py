"""One gateway of two worker processes before the real Triton: what one process does, both do together."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import pytest

from gateway import api_keys
from gateway.api_keys import ApiKey
from gateway.catalog import candidate, store
from gateway.catalog.candidate import Terms
from gateway.frontends import sockets
from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from gateway.settings import SettingsError
from loadtest.quality.rollout_command import SERVED_VARIABLES
from loadtest.stack import Stack, free_ports, fresh_stack
from tests import tiny
from tests.fakes import CONTEXT, QUESTION, TOKENIZER, make_catalog, make_variant

pytestmark = pytest.mark.end_to_end
BODY = json.dumps({"question": QUESTION, "context": CONTEXT}).encode()
FREE, LIMITED = "key-without-a-quota", "key-with-a-quota"
SLOW_ROUNDS = 60
PATIENCE_S = 60.0
VARIABLES = SERVED_VARIABLES | {
    "BERTIER_FEEDBACK_REQUESTS": "1000",
    "BERTIER_CANDIDATE_STICKY": "request",  # all have one key
}


@dataclass
class Gateway:
    """A gateway of two workers, and where it is looked at."""

    stack: Stack
    ops: str  # host:port
    repository: Path
    opened: list[http.client.HTTPConnection] = field(default_factory=list)

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.stack.pid).children()
        return [p for p in children if "gateway.workers.worker" in " ".join(p.cmdline())]

    def connect(self, at: str = "") -> http.client.HTTPConnection:
        found = http.client.HTTPConnection(at or urlsplit(self.stack.http_url).netloc, timeout=60)
        found.connect()
        self.opened.append(found)
        return found

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    def connections_to_each(self) -> dict[int, http.client.HTTPConnection]:
        """Return a connection to each worker, by process id."""
        found: dict[int, http.client.HTTPConnection] = {}
        while len(found) < 2:
            connection = self.connect()
            ask(connection)
            pid = self.pid_at(connection.sock.getsockname()[1])
            found.setdefault(pid, connection)
        return found

    def pid_at(self, callers_port: int) -> int:
        """Return the worker that has the other end of a connection."""
        for worker in self.workers():
            ports = [getattr(c.raddr, "port", None) for c in worker.net_connections()]
            if callers_port in ports:
                return worker.pid
        raise AssertionError("nobody has this connection")

    def metrics(self) -> str:
        connection = self.connect(self.ops)
        found = get(connection, "/metrics").decode()
        connection.close()
        return found

    def counted(self, name: str, **labels: str) -> float:
        """Return the sum of the series that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        rows = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(float(value) for found, value in rows if all(w in found for w in wanted))


def ask(
    connection: http.client.HTTPConnection, key: str = FREE, **headers: str
) -> http.client.HTTPResponse:
    """Ask a question; the answer is read."""
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", "/v1/answer", BODY, sent | named)
    reply = connection.getresponse()
    reply.read()
    return reply


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path, headers={"Authorization": f"Bearer {FREE}"})
    return connection.getresponse().read()


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def publish(repository: Path, names: list[str]) -> None:
    """Publish models of which `slow` takes some hundredths of a second."""
    variants = []
    for name in names:
        rounds = SLOW_ROUNDS if name == "slow" else 0
        shutil.rmtree(repository / name, ignore_errors=True)
        sha256 = tiny.write_model(repository, name, max_batch_size=1, slow_rounds=rounds)
        variants.append(make_variant(name, 50.0 if rounds else 1.0, sha256=sha256))
    store.write(repository, make_catalog(variants, [0.5 + 0.1 * i for i in range(len(names))]))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("workers")
    repository = folder / "model_repository"
    repository.mkdir()
    shutil.copy(TOKENIZER, repository)
    publish(repository, ["quick", "slow"])
    keys = folder / "keys.toml"
    keys.write_text(
        api_keys.entry("free", ApiKey(sha256=api_keys.digest(FREE)))
        + "\n"
        + api_keys.entry("limited", ApiKey(sha256=api_keys.digest(LIMITED), requests_per_s=0.2))
    )
    (port,) = free_ports(1)
    flags = ("--workers", "2", "--api-keys-file", str(keys), "--metrics-port", str(port))
    with fresh_stack(repository, *flags, variables=VARIABLES) as stack:
        found = Gateway(stack, f"127.0.0.1:{port}", repository)
        until(lambda: "2 workers answer" in stack.log.read_text())
        yield found


@pytest.fixture(autouse=True)
def closed(gateway: Gateway) -> Iterator[None]:
    """Connections of one test count for the next: a new one goes to the worker with the fewest."""
    yield
    gateway.close()


def test_both_workers_answer_over_http_and_grpc(gateway: Gateway) -> None:
    """Whoever has one core for Python and others for models would else wait for the one."""
    pids = {worker.pid for worker in gateway.workers()}
    assert gateway.connections_to_each().keys() == pids
    payload = json.loads(get(gateway.connect(gateway.ops), "/readyz"))
    assert payload["ready"]
    assert payload["workers"] == {"1": "ready", "2": "ready"}
    answered: set[int] = set()
    while answered != pids:
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(gateway.stack.grpc_target, options) as channel:
            request = qa_pb2.AnswerRequest(question=QUESTION, context=CONTEXT)
            metadata = (("authorization", f"Bearer {FREE}"),)
            stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]
            reply = stub.Answer(request, metadata=metadata, timeout=60)
            assert reply.answer
            port = int(gateway.stack.grpc_target.rsplit(":", 1)[1])
            answered |= {
                worker.pid
                for worker in gateway.workers()
                for c in worker.net_connections()
                if hasattr(c.raddr, "port") and getattr(c.laddr, "port", None) == port
            }


def test_one_scrape_counts_the_requests_of_both(gateway: Gateway) -> None:
    """Prometheus reaches one worker, and must not see half."""
    labels = {"frontend": "http", "outcome": "ok"}
    before = gateway.counted("bertier_requests_total", **labels)
    for connection in gateway.connections_to_each().values():
        for _ in range(49):
            assert ask(connection).status == 200
    n = gateway.counted("bertier_requests_total", **labels)
    assert n - before >= 100  # and those that looked for both workers
    for _ in range(4):  # whichever worker is asked
        assert gateway.counted("bertier_requests_total", **labels) == n
    assert gateway.counted("bertier_request_duration_seconds_count", frontend="http") == n


def test_a_worker_predicts_the_wait_behind_the_others_work(gateway: Gateway) -> None:
    """Both share the models: what one sends, the requests of the other wait for."""
    busy, idle = gateway.connections_to_each().values()
    more = [busy]
    mine = gateway.pid_at(busy.sock.getsockname()[1])
    while len(more) < 8:
        connection = gateway.connect()
        ask(connection)
        if gateway.pid_at(connection.sock.getsockname()[1]) == mine:
            more.append(connection)

    def predicted_ms() -> float:
        headers = {"Authorization": f"Bearer {FREE}", "SLO-Variant": "slow"}
        idle.request("POST", "/v1/plan", b"{}", headers)
        plan = json.loads(idle.getresponse().read())
        return float(next(c for c in plan["options"] if c["plan"] == "slow")["predicted_ms"])

    ask(idle, SLO_Variant="slow", SLO_Latency_Ms="60000")
    time.sleep(2.0)  # what was learned from it is forgotten
    alone_ms = predicted_ms()
    enough = threading.Event()

    def keep_busy(connection: http.client.HTTPConnection) -> None:
        while not enough.is_set():
            ask(connection, SLO_Variant="slow", SLO_Latency_Ms="60000")

    threads = [threading.Thread(target=keep_busy, args=(connection,)) for connection in more]
    for thread in threads:
        thread.start()
    try:
        until(lambda: predicted_ms() > 2.0 * alone_ms)
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def test_a_quota_holds_for_both_workers_together(gateway: Gateway) -> None:
    """One request in five seconds, over two connections to two processes."""
    outcomes = Counter(
        ask(connection, LIMITED).status
        for _ in range(3)
        for connection in gateway.connections_to_each().values()
    )
    assert outcomes == {200: 1, 429: 5}


def test_both_workers_switch_to_a_new_catalog(gateway: Gateway) -> None:
    """A request must not get another model because of the process that it came to."""
    each = gateway.connections_to_each()

    def served() -> list[list[str]]:
        found = [json.loads(get(c, "/v1/variants"))["variants"] for c in each.values()]
        return [[v["name"] for v in variants if v["served"]] for variants in found]

    assert served() == [["quick", "slow"]] * 2
    publish_more(gateway.repository)
    until(lambda: served() == [["quick", "slow", "third"]] * 2)
    assert gateway.counted("bertier_catalog_switches_total", result="switched") == 2


def publish_more(repository: Path) -> None:
    """Add a variant to what is published."""
    catalog = store.read(repository)
    sha256 = tiny.write_model(repository, "third", max_batch_size=1)
    variants = [*catalog.variants, make_variant("third", 2.0, sha256=sha256)]
    store.write(repository, make_catalog(variants, [0.5, 0.6, 0.7]))


def test_a_killed_worker_is_replaced_while_the_other_answers(gateway: Gateway) -> None:
    """Its own requests are lost with it, and no others."""
    killed, other = gateway.connections_to_each().items()
    before = gateway.counted("bertier_requests_total", frontend="http")
    psutil.Process(killed[0]).kill()
    for _ in range(20):
        assert ask(other[1]).status == 200
        with closing(gateway.connect()) as fresh:  # new callers find the one that is left
            assert ask(fresh).status == 200
    assert gateway.counted("bertier_requests_total", frontend="http") >= before + 40
    until(lambda: len(gateway.workers()) == 2)

    def states() -> dict[str, str]:
        found: dict[str, str] = json.loads(get(gateway.connect(gateway.ops), "/readyz"))["workers"]
        return found

    until(lambda: set(states().values()) == {"ready"})
    assert killed[0] not in gateway.connections_to_each()
    assert gateway.counted("bertier_worker_restarts_total") == 1
    assert "was killed by signal 9; another one starts" in gateway.stack.log.read_text()
    connection = gateway.connections_to_each()
    assert len(json.loads(get(next(iter(connection.values())), "/v1/variants"))["variants"]) == 3


def test_feedback_is_taken_by_another_worker_than_the_one_that_answered(gateway: Gateway) -> None:
    """A caller does not choose the process that its report reaches, nor waits before it reports."""
    one, other = gateway.connections_to_each().values()

    def report(connection: http.client.HTTPConnection, request_id: str) -> dict[str, object]:
        body = json.dumps({"request_id": request_id, "answers": ["nothing of the text"]})
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {FREE}"}
        connection.request("POST", "/v1/feedback", body, sent)
        reply = connection.getresponse()
        return {"status": reply.status, **json.loads(reply.read())}

    def known(connection: http.client.HTTPConnection) -> int:
        plans = json.loads(get(connection, "/v1/variants"))["plans"]
        return sum(plan["live"]["known"] for plan in plans if plan["live"])

    for nth in range(15):
        for asked, reported in ((one, other), (other, one)):
            request_id = ask(asked, X_Request_Id=f"{nth}-{asked is one}").headers["X-Request-Id"]
            found = report(reported, request_id)
            assert (found["status"], found["f1"]) == (200, 0.0), found
    assert report(one, "never asked")["status"] == 404
    assert known(one) == known(other) == 30
    assert gateway.counted("bertier_live_known_answers") == 30
    assert gateway.counted("bertier_feedback_total", outcome="taken") == 30


def test_a_test_of_a_candidate_goes_on_when_a_worker_is_killed(gateway: Gateway) -> None:
    """Its parent counts: what was sent to it is not lost with the worker, and the next worker joins."""

    def state() -> dict[str, Any]:
        told = json.loads(get(gateway.connect(gateway.ops), "/readyz"))["candidate"]
        return told or {}

    def counted() -> int:
        return sum(each["requests"] for each in state().get("sets", {}).values())

    def asked(n: int) -> int:
        """Return how many of n requests, each over a connection of its own, took part."""
        found = 0
        for _ in range(n):
            with closing(gateway.connect()) as connection:
                reply = ask(connection)
                assert reply.status == 200
                found += "SLO-Catalog" in reply.headers
        return found

    sha256 = tiny.write_model(gateway.repository, "fourth", max_batch_size=1)
    tried = make_catalog([make_variant("fourth", 2.0, sha256=sha256)], [0.7])
    candidate.write(gateway.repository, tried, Terms(share=0.5, promote_after=100))
    until(lambda: state().get("tried"))
    n = asked(60)
    until(lambda: counted() == n)
    gateway.workers()[0].kill()
    n += asked(20)
    until(lambda: counted() == n)
    until(
        lambda: (
            set(json.loads(get(gateway.connect(gateway.ops), "/readyz"))["workers"].values())
            == {"ready"}
        )
    )
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not state()["decided"]:
        asked(20)
        assert time.monotonic() < deadline, json.dumps(state())
    assert state()["decided"].startswith("promoted: "), state()
    assert [v.name for v in store.read(gateway.repository).variants] == ["fourth"]
    assert gateway.counted("bertier_rollouts_total", result="promoted") == 1


def test_a_second_gateway_cannot_take_the_shared_ports(gateway: Gateway) -> None:
    """Ports that workers share are open to each other, not to the next program, with or without workers."""
    host, port = gateway.stack.grpc_target.split(":")
    for take in (sockets.bind, sockets.reserve_shared):
        with pytest.raises(SettingsError, match=f"grpc_port: cannot listen on port {port}"):
            take(host, int(port), "grpc_port")


def test_sigterm_drains_both_and_loses_no_accepted_request(gateway: Gateway) -> None:
    """The last test: the parent ends, and everything it started."""
    family = psutil.Process(gateway.stack.pid).children(recursive=True)
    outcomes: Counter[str] = Counter()
    refused = threading.Event()

    def load() -> None:
        while not refused.is_set():
            try:
                connection = gateway.connect()
            except ConnectionRefusedError:
                refused.set()
                return
            with closing(connection):
                try:
                    outcomes[str(ask(connection).status)] += 1
                except (OSError, http.client.HTTPException) as lost:
                    outcomes[repr(lost)] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    parent = psutil.Process(gateway.stack.pid)
    parent.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    log = gateway.stack.log.read_text()
    assert outcomes.keys() == {"200"}, (outcomes, [x for x in log.splitlines() if "ERROR" in x])
    assert outcomes["200"] > 10
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))
    until(lambda: parent.status() == psutil.STATUS_ZOMBIE)
