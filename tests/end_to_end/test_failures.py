"""What breaks is said, and the next request works: Triton killed, catalog switched, SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import psutil
import pytest

from gateway.catalog import store
from loadtest.faults import fleet
from loadtest.stack import Stack, fresh_stack
from tests.end_to_end.conftest import REPOSITORY, until
from tests.fakes import ROOT

pytestmark = pytest.mark.end_to_end
BODY = {"question": "Who slept?", "context": "The old dog slept by the stove all winter."}
PAUSE_S = 0.02  # of an asker who got no answer


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the two smallest variants that may be changed."""
    return published(tmp_path_factory.mktemp("served"), 2)


@pytest.fixture(scope="module")
def smallest_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest variant alone: enough for whoever looks at processes."""
    return published(tmp_path_factory.mktemp("smallest"), 1)


def published(folder: Path, n_variants: int) -> Path:
    repository = folder / "model_repository"
    fleet.publish(REPOSITORY, repository, fleet.smallest(REPOSITORY, n_variants))
    return repository


@pytest.fixture(scope="module")
def own_stack(repository: Path) -> Iterator[Stack]:
    with fresh_stack(repository) as running:
        yield running


def ask(stack: Stack) -> int:
    return httpx2.post(f"{stack.http_url}/v1/answer", json=BODY, timeout=30).status_code


def tritons(stack: Stack) -> list[psutil.Process]:
    children = psutil.Process(stack.pid).children(recursive=True)
    return [p for p in children if p.name() == "tritonserver"]


def test_a_killed_triton_is_a_503_until_it_is_back(own_stack: Stack) -> None:
    """No request hangs or gets an unknown error, and nobody has to restart the gateway."""
    assert ask(own_stack) == 200
    (triton,) = tritons(own_stack)
    triton.kill()
    seen: set[int] = set()

    def failed() -> bool:
        seen.add(ask(own_stack))
        return bool(seen - {200})

    def answers_again() -> bool:
        seen.add(ask(own_stack))
        return ask(own_stack) == 200

    until(failed)
    until(answers_again)
    assert seen <= {200, 503, 504}


def test_triton_killed_under_load_ends_every_request(own_stack: Stack) -> None:
    """In an answer or in a failure of the table, around its deadline, and service comes back by itself."""
    timeout_ms, stop = 400, threading.Event()
    headers = {"x-envoy-expected-rq-timeout-ms": str(timeout_ms)}

    def keep_asking(_: int) -> list[tuple[int, str, float]]:
        ended = []
        with httpx2.Client(base_url=own_stack.http_url, timeout=30) as client:
            while not stop.is_set():
                began = time.monotonic()
                reply = client.post("/v1/answer", json=BODY, headers=headers)
                kind = "" if reply.status_code == 200 else reply.json()["type"]
                ended.append((reply.status_code, kind, time.monotonic() - began))
                if kind:
                    time.sleep(PAUSE_S)
        return ended

    until(lambda: ask(own_stack) == 200)
    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(keep_asking, n) for n in range(4)]
        try:
            for _ in range(2):
                (triton,) = tritons(own_stack)
                triton.kill()
                until(lambda: ask(own_stack) != 200)
                until(lambda: ask(own_stack) == 200)
        finally:
            stop.set()
    ended = [each for asker in askers for each in asker.result()]
    statuses = {status for status, _, _ in ended}
    assert {200, 503} <= statuses <= {200, 429, 503, 504}
    assert all(
        kind.startswith("urn:bertier:problem:") for status, kind, _ in ended if status != 200
    )
    assert (
        max(seconds for _, _, seconds in ended) < timeout_ms / 1e3 + 10
    )  # none hangs: 50 ms quiet


def test_a_new_catalog_is_switched_to_and_a_bad_one_refused(
    own_stack: Stack, repository: Path
) -> None:
    """Publishing needs no restart, and a mistake does not end service."""
    before = store.read(repository)
    origin = replace(before.origin, study="switched")
    store.write(repository, replace(before, origin=origin))

    def served_study() -> str:
        payload = httpx2.get(f"{own_stack.http_url}/v1/variants", timeout=30).json()
        return str(payload["origin"]["study"])

    until(lambda: served_study() == "switched")
    (repository / store.CATALOG).write_text('{"schema_version": 99}')
    until(lambda: b'result="refused"' in httpx2.get(f"{own_stack.http_url}/metrics").content)
    assert ask(own_stack) == 200
    assert served_study() == "switched"


def test_a_killed_gateway_leaves_no_process(own_stack: Stack) -> None:
    """kill -9 gives nobody a chance to clean up, so a guard does; after restarts of Triton, too."""
    gateway = psutil.Process(own_stack.pid)
    family = gateway.children(recursive=True)
    assert any(p.name() == "tritonserver" for p in family)
    gateway.kill()
    until(lambda: not any(alive(p) for p in family))


def test_sigterm_ends_the_gateway_and_every_process_it_started(smallest_repository: Path) -> None:
    """Nothing is left behind: each model instance is a process of its own."""
    with fresh_stack(smallest_repository) as running:
        gateway = psutil.Process(running.pid)
        family = gateway.children(recursive=True)
        assert any(p.name() == "tritonserver" for p in family)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(60) == 0
        log = running.log.read_text()
        assert "Exit timeout expired" not in log
        until(lambda: not any(alive(p) for p in family))


MEASUREMENT = """
import sys
from pathlib import Path
from loadtest.stack import fresh_stack
with fresh_stack(Path(sys.argv[1])) as running:
    print(running.pid, flush=True)
    input()
"""


def test_a_killed_measurement_leaves_no_stack(smallest_repository: Path) -> None:
    """Who breaks off a load test does not look for its gateway."""
    command = [sys.executable, "-c", MEASUREMENT, str(smallest_repository)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as measurement:
        assert measurement.stdout is not None
        gateway = psutil.Process(int(measurement.stdout.readline()))
        family = [gateway, *gateway.children(recursive=True)]
        assert len(family) > 2
        measurement.kill()
        until(lambda: not any(alive(p) for p in family))


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
