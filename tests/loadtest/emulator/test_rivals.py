"""A rival of the lab chooses in the gateway that serves, and nothing of ours helps it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.domain import Question, Reason, SloRequest
from gateway.errors import Overloaded
from gateway.observability.metrics import Metrics
from gateway.settings import Settings
from loadtest.emulator import rivals_command
from loadtest.emulator.rival_gateway import Rival, RivalService
from loadtest.lab import contenders, rivals
from loadtest.lab.contenders import FIXED
from loadtest.lab.engine import Policy, simulate
from tests.fakes import CONTEXT, QUESTION, FakeBackend, serving_set, small_and_large
from tests.loadtest import lab_world

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)


def served_by(rival: Policy, settings: Settings | None = None) -> tuple[RivalService, FakeBackend]:
    backend = FakeBackend()
    chooser = Rival(rival)
    service = RivalService(
        backend, settings or Settings(), Metrics(), clock=lambda: 0.0, chooser=chooser
    )
    service.serving = serving_set(small_and_large())
    return service, backend


async def test_a_fixed_rival_runs_its_model_for_any_slo() -> None:
    """Where ours would take the smallest that is accurate enough."""
    service, backend = served_by(rivals.Fixed("large"))
    answered = await service.answer(EXAMPLE_QUESTION, SloRequest(min_f1=0.4), 0.0)
    assert (answered.variant, answered.decision.reason) == ("large", Reason.MEETS_SLO)
    assert backend.asked == ["large"]


class Never(rivals.Plain):
    """Refuses everything."""

    def decide(self, *_: object) -> None:
        return None


async def test_what_a_rival_refuses_is_refused() -> None:
    """A rejection, as the lab counts one."""
    service, backend = served_by(Never())
    with pytest.raises(Overloaded):
        await service.answer(EXAMPLE_QUESTION, SloRequest(), 0.0)
    assert backend.asked == []


async def test_a_rival_is_not_helped_by_our_refusal_of_the_unread() -> None:
    """Even with as much in flight as there may be."""
    service, backend = served_by(rivals.Fixed("large"), Settings(max_in_flight=1))
    backend.gate = asyncio.Event()
    asking = asyncio.create_task(service.answer(EXAMPLE_QUESTION, SloRequest(), 0.0))
    await backend.until_asked()
    another = asyncio.create_task(service.answer(EXAMPLE_QUESTION, SloRequest(), 0.0))
    await backend.until_asked(2)
    backend.gate.set()
    await asyncio.gather(asking, another)


def test_a_rival_is_offered_no_cascade() -> None:
    """None of the papers has them; what they would do with ours is not known."""
    world = lab_world.doubtful()
    options = world.prediction().options(world.recording.sizes[0], 0.95, 0.0)
    seen: list[str] = []

    class Curious(rivals.Plain):
        def decide(self, request: object, options: rivals.Options, *_: object) -> None:
            seen.extend(o.plan.name for o in options)

    Rival(Curious()).choose(lab_world.slo(), options, 0.0, ())
    assert seen == ["small", "large"]


def test_an_unknown_policy_error_lists_the_known_ones() -> None:
    """Ours, every fixed plan, and those that need no batches."""
    world = lab_world.world()
    with pytest.raises(rivals_command.UnknownRival, match="infaas-style") as caught:
        rivals_command.policies_of(world, ["infaas"])
    assert rivals.ClipperStyle.name not in str(caught.value)
    assert f"{FIXED}small" in rivals_command.policies_of(world, None)
    assert rivals_command.policies_of(world, [contenders.OURS]) == [contenders.OURS]


def test_proteus_plans_from_its_first_second_on() -> None:
    """What it asked while it knew nothing of the demand is no more than that second."""
    world = lab_world.world()
    trace = lab_world.trace([5.0 * i for i in range(600)])
    fates = simulate(world, trace, rivals.ProteusStyle(world.all_cores), 1)
    plans = [fate.plan for fate in fates]
    assert plans[0] == "large"
    later = [
        p for p, request in zip(plans, trace, strict=True) if request.arrival_ms > 1_500.0 and p
    ]
    assert later.count("small") > 0.5 * len(later) > 0
