"""A study file that cannot work is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer import config
from optimizer.config import ConfigError

HEAD = 'name = "x"\nteacher_name = "t"\n'
CERTIFYING = '[[data]]\nsource = "a"\ncertifies = true\n'
STUDENT = '[[students]]\nname = "s"\nlayers = [0]\nffn = 8\n'


def test_the_usual_study_is_sound() -> None:
    """What `run` does when no study is named goes from data to a searched front."""
    study = config.read(config.DEFAULT_STUDY)
    assert study.search
    assert study.finish
    assert any(source.certifies for source in study.data)


def test_data_may_lie_beside_the_study_file(tmp_path: Path) -> None:
    """So a study that ships with its data runs from any folder; other paths are --data-dir's."""
    path = tmp_path / "study.toml"
    path.write_text(
        HEAD
        + 'report = ["./test.json", "squad_v2_dev"]\n'
        + CERTIFYING.replace('"a"', '"./a.json"')
        + '[[data]]\nsource = "b.json"\n'
    )
    study = config.read(path)
    assert [d.source for d in study.data] == [str(tmp_path / "a.json"), "b.json"]
    assert study.report == (str(tmp_path / "test.json"), "squad_v2_dev")


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
