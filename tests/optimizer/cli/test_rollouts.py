"""The commands of a candidate catalog."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.catalog import candidate, candidate_classes, store
from gateway.catalog.candidate import CANDIDATE, Terms
from optimizer.cli import main
from tests.fakes import make_catalog, make_variant, small_and_large


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return one with a current catalog and a candidate; neither has models."""
    store.write(tmp_path, small_and_large())
    candidate.write(tmp_path, make_catalog([make_variant("new", 5)], [0.6]), Terms(share=0.1))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--candidate", "1.5"], "--candidate 1.5: give a share above 0 and up to 1, or shadow"),
        (["--candidate", "0"], "--candidate 0: give a share"),
        (["--candidate", "nan"], "--candidate nan: give a share"),
        (["--candidate", "all"], "--candidate all: give a share"),
        (["--candidate", "shadow", "--promote-after", "0"], "it must be at least 1"),
        (["--promote-after", "100"], "--promote-after needs --candidate"),
    ],
)
@pytest.mark.parametrize("command", ["publish", "run"])
def test_wrong_terms_end_before_anything_is_done(
    command: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study takes hours; a typing mistake should not show after them."""
    assert main.main([command, "--study", "absent.toml", *options]) == 1
    assert said in capsys.readouterr().err


def test_promote_makes_the_candidate_the_catalog(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line is for programs."""
    assert main.main(["promote", "--model-repository", str(repository)]) == 0
    assert [v.name for v in store.read(repository).variants] == ["new"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


def test_withdraw_keeps_the_reason(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody will want to try it again."""
    given = ["--model-repository", str(repository), "--reason", "too slow for us"]
    assert main.main(["withdraw", *given]) == 0
    aside = Path(json.loads(capsys.readouterr().out)["withdrawn"])
    assert "too slow for us" in json.loads(aside.read_text())["rollout"]["withdrawn"]
    assert store.read(repository) == small_and_large()
    assert not (repository / CANDIDATE).exists()


@pytest.mark.parametrize("command", ["promote", "withdraw"])
def test_without_a_candidate_the_message_says_so(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been decided already, by a gateway."""
    assert main.main([command, "--model-repository", str(tmp_path)]) == 1
    assert f"nothing is tried: there is no {CANDIDATE}" in capsys.readouterr().err


def test_classes_are_promoted_and_withdrawn_where_no_catalog_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is kept as it is written."""
    text = '[classes.batch]  # for reports\nlatency_ms = 9000\npolicy = "prefer-accuracy"\n'
    given = ["--model-repository", str(tmp_path)]
    (tmp_path / candidate_classes.CANDIDATE).write_text(text)
    assert main.main(["promote", *given]) == 0
    promoted = Path(json.loads(capsys.readouterr().out)["promoted"])
    assert promoted == tmp_path / candidate_classes.CLASSES
    assert promoted.read_text() == text
    (tmp_path / candidate_classes.CANDIDATE).write_text(text)
    assert main.main(["withdraw", *given, "--reason", "too slow for us"]) == 0
    aside = Path(json.loads(capsys.readouterr().out)["withdrawn"])
    reason, _, kept = aside.read_text().partition("\n")
    assert (reason.endswith(": too slow for us"), kept) == (True, text)
