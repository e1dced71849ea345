"""`bertier-loadtest scale-out`: two gateways and two Tritons under load; parts die, come back and change."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.domain import Slo, SloPolicy
from loadtest.faults import phases
from loadtest.faults.phases import Episode
from loadtest.faults.play import Play, playing
from loadtest.sample import questions
from loadtest.stack import hardware

TIMEOUTS = 4.0  # targets, until the deadline


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `bertier-loadtest`."""
    text = "measure what callers notice when a gateway or a Triton dies, models change, gateways restart"
    command = commands.add_parser("scale-out", help=text, description=text)
    add = command.add_argument
    add("--rate", type=float, default=18.0, help="requests/s; a third each: HTTP, gRPC, client")
    add("--latency-ms", type=float, default=1_000.0, help="target of every request")
    add("--min-f1", type=float, default=0.3, help="floor of every request")
    add("--calm-seconds", type=float, default=10.0, help="before and after every event")
    add("--data", help="SQuAD-format file; default: the shipped sample")
    add("--model-repository", type=Path, default=Path("model_repository"))
    command.set_defaults(run=_run)


def joint_slo(latency_ms: float, min_f1: float) -> Slo:
    """Return the SLO of every request."""
    policy, timeout_ms = SloPolicy.PREFER_LATENCY, TIMEOUTS * latency_ms
    return Slo(latency_ms, min_f1, policy, timeout_ms, "standard")


def events(play: Play) -> list[Callable[[], Episode]]:
    """Return all that happens, in order."""
    return [
        lambda: play.kill_gateway(0),
        lambda: play.bring_gateway_back(0),
        lambda: play.kill_triton(0),
        lambda: play.bring_triton_back(0),
        lambda: play.publish(3),
        play.restart_gateways,
    ]


def _run(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    slo = joint_slo(args.latency_ms, args.min_f1)
    found: list[Episode] = []
    with (
        tempfile.TemporaryDirectory(prefix="bertier-") as folder,
        playing(
            Path(folder),
            args.model_repository.resolve(),
            questions(args.data),
            slo,
            args.rate,
            args.calm_seconds,
        ) as play,
    ):
        for event in events(play):
            found.append(event())
            print(f"{found[-1].event}: done", file=sys.stderr, flush=True)
    return _show(args, found)


def _show(args: argparse.Namespace, found: list[Episode]) -> tuple[bool, dict[str, Any]]:
    print(
        f"{args.rate:g} requests/s, {args.latency_ms:g} ms, F1 >= {args.min_f1:g}; {hardware()}\n"
    )
    print(phases.markdown(found), end="\n\n")
    for episode in found:
        if episode.in_flight is not None:
            there, anywhere = episode.in_flight.there, episode.in_flight.anywhere
            print(
                f"{episode.event}: {there} in flight there just before, {anywhere} on their way to"
                f" both gateways; {episode.lost} of them lost."
            )
        for failure in episode.failures:
            print(f"{episode.event}: {failure}", file=sys.stderr)
    complaints = [c for c in (episode.complaint() for episode in found) if c]
    for complaint in complaints:
        print(f"NOT AS PROMISED: {complaint}")
    return not complaints, {"episodes": [asdict(e) for e in found], "host": hardware()}
