"""SLO classes of a file in the model repository, and a candidate of them, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog import candidate as catalogs
from gateway.catalog import candidate_classes as disk
from gateway.catalog.candidate import Terms
from gateway.domain import Question, SetName, Slo, SloPolicy, SloRequest
from gateway.errors import RepositoryError
from gateway.lifecycle.readiness import CandidateState
from gateway.observability import logs
from gateway.slo import STANDARD_CLASSES
from tests.fakes import CONTEXT, QUESTION, make_catalog, make_variant, small_and_large
from tests.gateway.lifecycle.test_watcher import House

STANDARD = """
[classes.standard]  # kept as it is written
latency_ms = {latency_ms}
policy = "prefer-latency"
min_f1 = 0.4
"""
TRIED = "[rollout]\nshare = 0.5\npromote_after = 20\n"


@pytest.fixture
async def house(tmp_path: Path) -> House:
    """Return one that serves `small` and `large`; tests end within some requests."""
    house = House(tmp_path, candidate_margin=0.5, candidate_compared=0.0)
    house.publish(small_and_large())
    await house.watcher.check()
    return house


def put(house: House, name: str, text: str) -> None:
    (house.repository / name).write_text(text)


async def state(house: House) -> CandidateState:
    found = (await house.watcher.readiness()).candidate
    assert found is not None
    return found


async def ask(house: House, nth: int, slo_class: str | None = None) -> tuple[SetName | None, Slo]:
    logs.request_id.set(f"request {nth}")
    request, question = SloRequest(slo_class=slo_class), Question(QUESTION, CONTEXT)
    answered = await house.service.answer(question, request, house.service._clock())
    return answered.served_by, answered.slo


async def test_a_file_stands_in_place_of_the_settings_until_it_is_gone(house: House) -> None:
    """Requests get the new targets without a restart; other classes stay."""
    put(house, disk.CLASSES, STANDARD.format(latency_ms=400))
    await house.watcher.check()
    assert (await ask(house, 0))[1].latency_ms == 400
    assert (await ask(house, 0, "batch"))[1].latency_ms == STANDARD_CLASSES["batch"].latency_ms
    (house.repository / disk.CLASSES).unlink()
    await house.watcher.check()
    assert (await ask(house, 0))[1].latency_ms == STANDARD_CLASSES["standard"].latency_ms


BAD = [
    ("[classes.standard", "cannot be read as TOML"),
    ("x = " + "[" * 900 + "]" * 900, "cannot be read as TOML"),
    ("x = " + "9" * 5000, "cannot be read as TOML"),
    ("[classes.standard]\nlatency_ms = 0x" + "f" * 5000, "cannot be read as TOML"),
    ("http_port = 9", "http_port: only classes may be set here"),
    ("[rollout]\nshare = 0.5", "it has no [classes.NAME]"),
    ("[classes.fast]\nlatency_ms = 9\npolicy = 'strict'", "no such class, only batch, inter"),
    ("[classes.batch]\nlatency = 9\npolicy = 'strict'", "the nearest is latency_ms"),
    ("[classes.batch]\nlatency_ms = '9'\npolicy = 'strict'", "give a number of ms"),
    ("[classes.batch]\nlatency_ms = 0.5\npolicy = 'strict'", "batch.latency_ms is 0.5, it must"),
    ("[classes.batch]\nlatency_ms = 9\npolicy = 'loose'", "classes.batch.policy"),
    (
        "[classes.batch]\nlatency_ms = 9\npolicy = 'strict'\ntimeout_ms = 1e8",
        "more than 240000 needs a restart",
    ),
]


@pytest.mark.parametrize(("text", "why"), BAD)
async def test_a_file_that_cannot_be_used_changes_nothing(
    house: House, text: str, why: str
) -> None:
    """It is said in /readyz and in a metric."""
    put(house, disk.CLASSES, STANDARD.format(latency_ms=400))
    await house.watcher.check()
    put(house, disk.CLASSES, text)
    for _ in range(3):
        await house.watcher.check()
    readiness = await house.watcher.readiness()
    assert readiness.ready
    assert why in str(readiness.classes_refused)
    assert (await ask(house, 0))[1].latency_ms == 400
    registry = house.service.metrics.registry
    labels = {"file": "classes", "result": "refused"}
    assert registry.get_sample_value("bertier_reloads_total", labels) == 1
    put(house, disk.CLASSES, STANDARD.format(latency_ms=500))
    await house.watcher.check()
    assert (await house.watcher.readiness()).classes_refused is None
    assert (await ask(house, 0))[1].latency_ms == 500


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *BAD,
        (TRIED.replace("0.5", "0") + STANDARD.format(latency_ms=9), "share: 0 is not above 0"),
        (TRIED.replace("share", "shares") + STANDARD.format(latency_ms=9), "rollout.shares"),
    ],
)
async def test_a_bad_candidate_is_refused(house: House, text: str, why: str) -> None:
    """With the same words as a file that is used."""
    put(house, disk.CANDIDATE, text)
    await house.watcher.check()
    found = await state(house)
    assert not found.tried
    assert why in str(found.refused)
    assert (await ask(house, 0))[0] is None


async def test_classes_like_the_current_ones_are_no_candidate(house: House) -> None:
    """There would be nothing to compare."""
    put(house, disk.CLASSES, STANDARD.format(latency_ms=400))
    put(house, disk.CANDIDATE, TRIED + STANDARD.format(latency_ms=400))
    await house.watcher.check()
    assert "its classes are the current ones" in str((await state(house)).refused)


async def test_classes_that_are_as_well_met_are_promoted(house: House) -> None:
    """Their share of the requests is sticky, other classes take no part, and the file is kept as written."""
    text = TRIED + STANDARD.format(latency_ms=400)
    put(house, disk.CLASSES, STANDARD.format(latency_ms=300))
    put(house, disk.CANDIDATE, text)
    await house.watcher.check()
    assert (await state(house)).classes == ("standard",)
    one, two = [[await ask(house, nth) for nth in range(60)] for _ in range(2)]
    assert [name for name, _ in one] == [name for name, _ in two]
    by_set = {name: slo.latency_ms for name, slo in one}
    assert by_set == {SetName.CURRENT: 300, SetName.CANDIDATE: 400}
    assert (await ask(house, 0, "batch"))[0] is None
    for nth in range(200):
        await ask(house, nth)
    await house.watcher.check()
    assert str((await state(house)).decided).startswith("promoted: slo 0 of ")
    await house.watcher.check()
    assert (await ask(house, 0))[1].latency_ms == 400
    assert (house.repository / disk.CLASSES).read_text() == text
    previous = (house.repository / disk.PREVIOUS).read_text()
    assert previous == STANDARD.format(latency_ms=300)
    assert not (house.repository / disk.CANDIDATE).exists()


@pytest.mark.parametrize("policy", list(SloPolicy))
async def test_classes_that_cannot_be_met_are_withdrawn_and_nothing_is_lost(
    house: House, policy: SloPolicy
) -> None:
    """Where the candidate refuses, or answers below its floor, the counts say so."""
    hopeless = STANDARD.format(latency_ms=250).replace("0.4", "0.99")
    hopeless = hopeless.replace("prefer-latency", policy)
    put(house, disk.CANDIDATE, TRIED + hopeless)
    await house.watcher.check()
    for nth in range(120):
        await ask(house, nth)
    await house.watcher.check()
    assert str((await state(house)).decided).startswith("withdrawn: slo ")
    (aside,) = house.repository.glob("classes.withdrawn-*.toml")
    assert aside.read_text().endswith(TRIED + hopeless)
    put(house, disk.CANDIDATE, TRIED + hopeless)
    await house.watcher.check()
    refused = str((await state(house)).refused)
    assert "was withdrawn before" in refused
    assert f"remove {aside.name}" in refused


async def test_a_shadow_of_classes_is_seen_by_no_caller(house: House) -> None:
    """It answers what the current ones have answered, in spare time; floors alone count."""
    low = STANDARD.format(latency_ms=250).replace("0.4", "0.99")
    put(house, disk.CANDIDATE, "[rollout]\nshadow = true\n" + low)
    await house.watcher.check()
    for nth in range(40):
        name, slo = await ask(house, nth)
        assert (name, slo.min_f1) != (SetName.CANDIDATE, 0.99)
        await house.service.rollout.idle()
    await house.watcher.check()
    assert str((await state(house)).decided).startswith("withdrawn: slo ")


async def test_a_catalog_goes_first(house: House) -> None:
    """Two candidates at a time could not be told apart."""
    put(house, disk.CANDIDATE, TRIED + STANDARD.format(latency_ms=400))
    new = make_catalog([make_variant("new", 5, sha256="1" * 64)], [0.6])
    catalogs.write(house.repository, new, Terms(share=0.5))
    await house.watcher.check()
    assert (await state(house)).classes == ()
    catalogs.withdraw(house.repository, "by hand")
    await house.watcher.check()
    assert (await state(house)).classes == ("standard",)


async def test_other_current_classes_begin_the_test_anew(house: House) -> None:
    """What was seen was compared with others."""
    put(house, disk.CANDIDATE, TRIED + STANDARD.format(latency_ms=400))
    await house.watcher.check()
    await ask(house, 0)
    put(house, disk.CLASSES, STANDARD.format(latency_ms=300))
    await house.watcher.check()
    assert sum(each.requests for each in (await state(house)).sets.values()) == 0


def test_only_the_candidate_that_was_judged_is_moved(tmp_path: Path) -> None:
    """Another one may lie there by now."""
    (tmp_path / disk.CANDIDATE).write_text(STANDARD.format(latency_ms=400))
    with pytest.raises(RepositoryError, match="replaced by another candidate"):
        disk.promote(tmp_path, "0" * 64)
    with pytest.raises(RepositoryError, match="replaced by another candidate"):
        disk.withdraw(tmp_path, "worse", "0" * 64)
    assert disk.promote(tmp_path) == tmp_path / disk.CLASSES
