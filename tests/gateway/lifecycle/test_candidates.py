"""A candidate catalog from its file to its end, step by step over a repository in a temporary folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog import candidate as disk
from gateway.catalog import store
from gateway.catalog.candidate import CANDIDATE, Terms
from gateway.catalog.store import Catalog
from gateway.domain import Question, SetName, SloRequest, Texts
from gateway.errors import BackendError, RepositoryError
from gateway.lifecycle.candidates import LONGEST_RETRY_MS, Candidates
from gateway.lifecycle.readiness import CandidateState
from gateway.lifecycle.retirement import Retirement
from gateway.lifecycle.watcher import Watcher
from gateway.monitoring.rollout_tests import Rate
from gateway.observability import logs
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from tests.fakes import (
    CONTEXT,
    QUESTION,
    FakeBackend,
    make_catalog,
    make_variant,
    small_and_large,
    with_entails,
    with_topic,
)
from tests.gateway.lifecycle.test_watcher import House


def new(floor: float = 0.6) -> Catalog:
    return make_catalog([make_variant("new", 5, sha256="1" * 64)], [floor])


@pytest.fixture
async def house(tmp_path: Path) -> House:
    """Return one that serves `small` and `large`."""
    house = House(tmp_path)
    house.publish(small_and_large())
    await house.watcher.check()
    return house


async def look(house: House, terms: Terms | None = None, catalog: Catalog | None = None) -> None:
    """Publish a candidate, if one is given, and look at it."""
    if terms is not None:
        disk.write(house.repository, catalog or new(), terms)
    await house.watcher.check()


async def state(house: House) -> CandidateState:
    found = (await house.watcher.readiness()).candidate
    assert found is not None
    return found


async def ask(house: House, n: int, **slo: Any) -> list[SetName | None]:
    found = []
    for i in range(n):
        logs.request_id.set(f"request {i}")
        request = SloRequest(**({"min_f1": 0.4} | slo))
        question = Question(QUESTION, CONTEXT)
        answered = await house.service.answer(question, request, house.service._clock())
        found.append(answered.served_by)
    return found


def metric(house: House, name: str, **labels: str) -> float | None:
    return house.service.metrics.registry.get_sample_value(name, labels)


async def test_a_sound_candidate_is_tried(house: House) -> None:
    """Its models are loaded and checked beside those of the current catalog, which stays."""
    await look(house, Terms(share=0.5))
    found = await state(house)
    assert (found.tried, found.share, found.refused) == (True, 0.5, None)
    assert house.served() == ["large", "small"]
    assert set(house.backend.loaded) == {"small/1", "large/1", "new/1"}
    assert set(await ask(house, 30)) == {SetName.CURRENT, SetName.CANDIDATE}
    found = await state(house)
    assert sum(each.requests for each in found.sets.values()) == 30
    assert metric(house, "bertier_candidate_share") == 0.5


async def test_a_catalog_copied_by_hand_gets_the_share_of_the_settings(house: House) -> None:
    """No tool is needed: a catalog beside the current one is enough."""
    (house.repository / CANDIDATE).write_bytes(store.dump(new()))
    await house.watcher.check()
    assert (await state(house)).share == Settings().candidate_share


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("{", "not JSON"),
        ('{"schema_version": 3}', "schema"),
        ("[]", "must be an object"),
        ({"share": 0.0}, "rollout.share: 0 is not above 0"),
        ({"share": 1.5}, "rollout.share: 1.5 is not above 0"),
        ({"promote_after": 0}, "promote_after"),
        ({"shares": 0.1}, "rollout.shares"),
        ({"withdrawn": "yesterday: bad"}, "it was withdrawn (yesterday: bad)"),
    ],
)
async def test_a_bad_candidate_is_refused_and_the_current_goes_on(
    house: House, raw: str | dict[str, Any], why: str
) -> None:
    """It is said in the log, in /readyz and in a metric, once."""
    text = (
        raw
        if isinstance(raw, str)
        else json.dumps(json.loads(store.dump(new())) | {"rollout": raw})
    )
    (house.repository / CANDIDATE).write_text(text)
    for _ in range(3):
        await house.watcher.check()
    found = await state(house)
    assert not found.tried
    assert why in str(found.refused)
    assert house.served() == ["large", "small"]
    assert (await house.watcher.readiness()).ready
    assert metric(house, "bertier_candidate_refused") == 1
    assert metric(house, "bertier_rollouts_total", result="refused") == 1
    await look(house, Terms(share=0.5))
    assert (await state(house)).tried
    assert metric(house, "bertier_candidate_refused") == 0


async def test_a_candidate_like_the_current_catalog_is_refused(house: House) -> None:
    """There is nothing to compare; where the catalog comes from makes no difference."""
    catalog = small_and_large()
    other = replace(catalog, origin=replace(catalog.origin, date="2026-02-02T00:00:00Z"))
    await look(house, Terms(share=0.5), other)
    assert "same variants and plans" in str((await state(house)).refused)


async def test_a_candidate_beside_classifications_is_tried_on_questions(house: House) -> None:
    """They stay as they are: nothing compares their answers."""
    house.publish(with_topic(small_and_large()))
    await house.watcher.check()
    await look(house, Terms(share=0.5), with_topic(new()))
    assert (await state(house)).tried
    assert set(await ask(house, 30)) == {SetName.CURRENT, SetName.CANDIDATE}
    classified = await house.service.answer(Texts("a"), SloRequest(), house.service._clock())
    assert (classified.variant, classified.served_by) == ("topic-large", None)


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (new(), "the candidate changes the classification topic"),
        (with_entails(with_topic(new())), "the candidate changes the classification entails"),
        (with_topic(new()).only("topic"), "one of the two catalogs has no question-answering"),
    ],
)
async def test_a_candidate_that_changes_a_classification_is_refused(
    house: House, candidate: Catalog, why: str
) -> None:
    """It would be promoted for how it answers questions."""
    house.publish(with_topic(small_and_large()))
    await house.watcher.check()
    await look(house, Terms(share=0.5), candidate)
    assert why in str((await state(house)).refused)


async def test_a_candidate_of_which_a_part_fails_is_not_tried_until_it_is_whole(
    house: House,
) -> None:
    """It would be judged by what is left of it. What may pass is tried again."""
    variants = [make_variant("new", 5, sha256="1" * 64), make_variant("newer", 6, sha256="2" * 64)]
    house.backend.errors["newer"] = BackendError("newer: broken")
    await look(house, Terms(share=0.5), make_catalog(variants, [0.5, 0.6]))
    assert "newer: newer: broken" in str((await state(house)).refused)
    assert set(await ask(house, 20)) == {None}
    house.backend.errors.clear()
    house.now_ms += LONGEST_RETRY_MS
    await house.watcher.check()
    assert (await state(house)).tried


async def test_models_without_room_are_not_loaded(house: House) -> None:
    """The process would be ended by the kernel, and the current catalog with it."""
    disk.write(house.repository, new(), Terms())
    free = [1e6]
    candidates = Candidates(
        house.service, Retirement(1.0, lambda: 0.0), lambda: 0.0, free_bytes=lambda: free[0]
    )
    await candidates.look()
    found = candidates.state()
    assert found is not None
    assert "156 MB more would be taken, 1 MB are free" in str(found.refused)
    assert "new/1" not in house.backend.loaded


async def test_a_worse_candidate_is_withdrawn_and_not_tried_again(house: House) -> None:
    """By itself; the file says why, and a restart does not start it again."""
    await look(house, Terms(share=0.5))
    raw = (house.repository / CANDIDATE).read_bytes()
    house.backend.errors["new"] = BackendError("new: broken")
    assert set(await ask(house, 60)) == {SetName.CURRENT}  # no request is lost
    await house.watcher.check()
    assert not (house.repository / CANDIDATE).exists()
    (aside,) = house.repository.glob("catalog.withdrawn-*.json")
    withdrawn = json.loads(aside.read_text())["rollout"]["withdrawn"]
    assert "shown to be worse: errors" in withdrawn
    found = await state(house)
    assert not found.tried
    assert str(found.decided).startswith("withdrawn: errors")
    assert metric(house, "bertier_rollouts_total", result="withdrawn") == 1
    (house.repository / CANDIDATE).write_bytes(raw)  # as if the process had been killed half-way
    again = Watcher(house.service)
    await again.check()
    ready = (await again.readiness()).candidate
    assert ready is not None
    assert "was withdrawn before" in str(ready.refused)
    aside.unlink()
    house.backend.errors.clear()
    await house.watcher.check()
    assert (await state(house)).tried


async def test_what_was_withdrawn_is_unloaded(house: House) -> None:
    """Its memory is free again, and the current catalog's models stay."""
    await look(house, Terms(share=0.5))
    disk.withdraw(house.repository, "by hand")
    house.now_ms += 10 * LONGEST_RETRY_MS
    await house.watcher.check()
    assert set(house.backend.loaded) == {"small/1", "large/1"}
    assert "by hand" in str((await state(house)).decided)
    assert set(await ask(house, 5)) == {None}


async def test_one_that_is_no_worse_is_promoted_by_rule(tmp_path: Path) -> None:
    """The next look switches to it as to any new catalog; the one before stays for a rollback."""
    house = House(tmp_path, candidate_margin=0.2)
    house.publish(small_and_large())
    await house.watcher.check()
    await look(house, Terms(share=0.5, promote_after=10))
    running = house.service.rollout.running
    assert running is not None
    for _ in range(250):
        for rate in Rate:
            for candidate in (False, True):
                running.tests.add(rate, candidate=candidate, bad=False)
    await house.watcher.check()
    assert str((await state(house)).decided).startswith("promoted: slo 0 of")
    await house.watcher.check()
    assert house.served() == ["new"]
    assert not (house.repository / CANDIDATE).exists()
    previous = house.repository / store.PREVIOUS
    assert store.parse(previous.read_bytes(), previous) == small_and_large()


async def test_promotion_by_hand_is_followed(house: House) -> None:
    """Or the candidate would be compared with itself."""
    await look(house, Terms(share=0.5))
    disk.promote(house.repository)
    await house.watcher.check()
    assert house.served() == ["new"]
    assert not (await state(house)).tried


async def test_a_promotion_does_not_undo_a_classification(house: House) -> None:
    """A candidate has the whole catalog of when it was made; what was published since would be gone."""
    await look(house, Terms(share=0.5))
    store.write(house.repository, with_topic(small_and_large()))
    with pytest.raises(RepositoryError, match="changes the classification topic"):
        disk.promote(house.repository)
    assert store.read(house.repository).task_names == ("qa", "topic")


async def test_a_promotion_that_was_ended_half_way_goes_on(house: House) -> None:
    """Killed after the switch: the previous catalog is still the one before, not the new one."""
    await look(house, Terms(share=0.5))
    raw = (house.repository / CANDIDATE).read_bytes()
    disk.promote(house.repository)
    (house.repository / CANDIDATE).write_bytes(raw)
    disk.promote(house.repository)
    assert not (house.repository / CANDIDATE).exists()
    previous = house.repository / store.PREVIOUS
    assert store.parse(previous.read_bytes(), previous) == small_and_large()


async def test_the_first_of_several_gateways_decides_for_all(house: House) -> None:
    """A second one that comes to a verdict later finds the file gone, and only follows."""
    other = AnswerService(FakeBackend(), Settings(model_repository=house.repository), Metrics())
    second = Watcher(other)
    await look(house, Terms(share=0.5))
    await second.check()
    running = other.rollout.running
    assert running is not None
    disk.withdraw(house.repository, "by the first", running.sha256)
    with pytest.raises(RepositoryError, match="No such file"):
        disk.withdraw(house.repository, "by the second", running.sha256)
    await second.check()
    assert other.rollout.running is None


async def test_another_candidate_is_not_withdrawn_for_this_one(house: House) -> None:
    """It may be replaced between the verdict and the file's move."""
    await look(house, Terms(share=0.5))
    sha256 = disk.read(house.repository).sha256
    disk.write(house.repository, new(0.5), Terms(share=0.5))
    with pytest.raises(RepositoryError, match="another candidate"):
        disk.withdraw(house.repository, "too late", sha256)
    assert (house.repository / CANDIDATE).exists()


async def test_where_nothing_can_be_written_the_verdict_holds_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository is often mounted read-only; the reason says that the file is still there."""
    await look(house, Terms(share=0.5))
    house.backend.errors["new"] = BackendError("new: broken")
    await ask(house, 60)

    def read_only(*_: Any) -> Path:
        raise RepositoryError("read-only file system")

    monkeypatch.setattr(disk, "withdraw", read_only)
    await house.watcher.check()
    n_asked = len(house.backend.asked)
    assert set(await ask(house, 20)) == {SetName.CURRENT}
    assert "new" not in house.backend.asked[n_asked:]
    assert "not on disk (read-only file system)" in str((await state(house)).decided)


async def test_a_new_current_catalog_starts_the_comparison_again(house: House) -> None:
    """What was seen beside another catalog says nothing of this one."""
    await look(house, Terms(share=0.5))
    await ask(house, 30)
    house.publish(make_catalog([make_variant("medium", 10, sha256="3" * 64)], [0.6]))
    await house.watcher.check()
    found = await state(house)
    assert found.tried
    assert sum(each.requests for each in found.sets.values()) == 0


async def test_after_the_model_server_was_away_the_trial_goes_on(house: House) -> None:
    """Its models are loaded again, and what was seen still counts."""
    await look(house, Terms(share=0.5))
    await ask(house, 30)
    house.backend.loaded.clear()
    house.restarts = 1
    await house.watcher.check()
    assert "new/1" in house.backend.loaded
    found = await state(house)
    assert sum(each.requests for each in found.sets.values()) == 30


async def test_a_candidate_that_cannot_be_read_for_once_goes_on(house: House) -> None:
    """Its metrics, too: a share of 0 would say that nothing is tried."""
    await look(house, Terms(share=0.5))
    path = house.repository / disk.CANDIDATE
    content = path.read_bytes()
    path.unlink()
    path.mkdir()  # an error, whoever reads it
    await house.watcher.check()
    path.rmdir()
    path.write_bytes(content)
    await house.watcher.check()
    found = await state(house)
    assert (found.tried, found.refused) == (True, None)
    assert metric(house, "bertier_candidate_share") == 0.5
    assert metric(house, "bertier_candidate_refused") == 0


async def test_a_share_of_zero_tries_nothing(tmp_path: Path) -> None:
    """For gateways that must not: no file in the repository can make them."""
    house = House(tmp_path, candidate_share=0.0)
    house.publish(small_and_large())
    await look(house, Terms(share=0.5))
    await house.watcher.check()
    assert (await house.watcher.readiness()).candidate is None
