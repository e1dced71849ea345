"""Where trials are kept: one worker to a file, and a storage that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.search.storage import SearchError, opened
from optimizer.study.config import Sampler, SearchConfig
from optimizer.study.workers import Busy
from tests.searching import STUDY, Judge, search

HOW = SearchConfig(sampler=Sampler.RANDOM, trials=20)


def test_one_file_has_one_worker(tmp_path: Path) -> None:
    """Two would take each other's trials for dead."""
    with opened(None, tmp_path, STUDY), pytest.raises(Busy, match="another search runs there"):
        search(tmp_path, HOW, Judge().evaluators)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:secret@127.0.0.1:9/none", "me:\\*\\*\\*@127.0.0.1:9/none"),
        ("nonsense", "--storage"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("oracle://host/x", "--storage"),
    ],
)
def test_a_missing_storage_gives_a_one_line_error(tmp_path: Path, url: str, said: str) -> None:
    """Without a traceback, and without the password."""
    with pytest.raises(SearchError, match=said) as raised:
        search(tmp_path, HOW, Judge().evaluators, url=url)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
