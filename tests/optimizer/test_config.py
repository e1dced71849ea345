"""A study file that cannot work is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer import config
from optimizer.cli import STUDY
from optimizer.config import ConfigError

HEAD = 'name = "x"\nteacher_name = "t"\n'
CERTIFYING = '[[data]]\nsource = "a"\ncertifies = true\n'
STUDENT = '[[students]]\nname = "s"\nlayers = [0]\nffn = 8\n'


def test_the_shipped_study_is_sound() -> None:
    """What made the shipped models can be run again."""
    study = config.read(STUDY)
    assert len(study.students) == 2
    assert any(source.certifies for source in study.data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + '[[data]]\nsource = "a"\n', "certifies"),
        (HEAD + CERTIFYING + STUDENT + 'start = "later"\n', "starts from later"),
        (HEAD + CERTIFYING + STUDENT + "embeding_bits = 4\n", "embeding_bits"),
    ],
)
def test_a_study_that_cannot_work_names_its_fault(tmp_path: Path, text: str, said: str) -> None:
    """A fault found after hours of training is found too late."""
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.read(path)
