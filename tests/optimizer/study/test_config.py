"""A study file that cannot work is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.study import config, same_task
from optimizer.study.config import ConfigError, TaskConfig

HEAD = 'name = "x"\nteacher_name = "t"\n'
CERTIFYING = '[[data]]\nsource = "a"\ncertifies = true\n'
TASK = '[task]\nname = "nli"\ntext = "a"\n'
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
        (HEAD + CERTIFYING + STUDENT + 'start = "later"\n', "start later must be"),
        (HEAD + CERTIFYING + STUDENT + "embeding_bits = 4\n", "embeding_bits"),
        (
            'teacher = "t"\n' + HEAD + CERTIFYING + TASK,
            "nli classifies, and teacher, .* leave it out",
        ),
        (HEAD + CERTIFYING + "unanswerable = 0.5\n" + TASK, "unanswerable of .* is of question"),
        (HEAD + CERTIFYING + TASK + 'text_pair = "a"\n', "one is named twice"),
    ],
)
def test_a_study_that_cannot_work_names_its_fault(tmp_path: Path, text: str, said: str) -> None:
    """A fault found after hours of training is found too late."""
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.read(path)


def test_dropped_tokens_are_of_questions(tmp_path: Path) -> None:
    """They are chosen by what they are worth as an answer's, which a text to classify has not."""
    path = tmp_path / "study.toml"
    student = '[[students]]\nname = "s"\nlayers = [0, 1]\nffn = 8\nkeep = 0.5\ndrop_after = 1\n'
    path.write_text(HEAD + CERTIFYING + TASK + student)
    with pytest.raises(ConfigError, match=r"s drops tokens .* leave keep and drop_after out"):
        config.read(path)


def test_a_run_folder_keeps_its_task(tmp_path: Path) -> None:
    """Another task's first stage would replace what the folder holds; another name is no other task."""
    nli = TaskConfig(name="nli", text="a", text_pair="b")
    same_task.check(tmp_path / "run", nli)
    same_task.check(tmp_path / "run", nli.model_copy(update={"name": "other"}))
    with pytest.raises(ConfigError, match="holds a study of label of a and b, not of question ans"):
        same_task.check(tmp_path / "run", None)
    old = tmp_path / "old" / "teacher"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    same_task.check(tmp_path / "old", None)
    with pytest.raises(ConfigError, match="holds a study of question answering, not of label of a"):
        same_task.check(tmp_path / "old", nli)


def roles(tmp_path: Path, text: str) -> config.StudyConfig:
    path = tmp_path / "study.toml"
    path.write_text(text + HEAD + CERTIFYING)
    return config.read(path)


def test_a_teacher_alone_is_all_there_is(tmp_path: Path) -> None:
    """One checkpoint teaches, is cut into students, is published and is compared with."""
    study = roles(tmp_path, 'teacher = "A"\n')
    assert (study.finished, study.outside_teachers, study.student_weights) == ("A", (), None)


@pytest.mark.parametrize(
    ("text", "finished", "outside", "encoder", "student_weights"),
    [
        ('backbone = "B"\n', None, (), "B", None),
        ('teacher = "A"\nweights = "W"\n', None, ("A",), "W", None),
        ('teacher = ["A", "C"]\nweights = "W"\n', None, ("A", "C"), "W", None),
        ('teacher = "A"\nlargest = "L"\n', "L", ("A",), "B0", None),
        ('teacher = "A"\nlargest = "L"\nweights = "W"\n', "L", ("A",), "W", "W"),
        ('backbone = "B"\nweights = "W"\n', None, (), "B", "W"),
    ],
)
def test_teacher_weights_and_largest_model_are_three_things(
    tmp_path: Path,
    text: str,
    finished: str | None,
    outside: tuple[str, ...],
    encoder: str,
    student_weights: str | None,
) -> None:
    """A teacher of any family need not be cut or published."""
    study = roles(tmp_path, text)
    assert (study.finished, study.outside_teachers) == (finished, outside)
    assert study.student_weights == student_weights
    if encoder != "B0":
        assert study.encoder == encoder


def test_several_teachers_need_weights(tmp_path: Path) -> None:
    """No student can be cut from two models."""
    with pytest.raises(ConfigError, match="with several teachers, set weights"):
        roles(tmp_path, 'teacher = ["A", "C"]\n')
    alone = roles(tmp_path, "")
    with pytest.raises(ConfigError, match="--teacher: with several teachers"):
        config.with_roles(alone, {"teacher": ("A", "C")})


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("", {}, None),
        ("", {"backbone": "B"}, None),
        ("", {"teacher": "A"}, None),
        ("", {"teacher": "A", "backbone": "B"}, "backbone B is ignored: A is used unchanged"),
        ('backbone = "B"\n', {"teacher": "A"}, "set weights (--weights B)"),
        ("", {"teacher": "A", "weights": "W", "backbone": "B"}, "starts from weights W"),
        ('largest = "L"\n', {"backbone": "B"}, "largest L is used unchanged"),
    ],
)
def test_a_backbone_without_effect_gives_a_warning(
    tmp_path: Path, text: str, given: dict[str, str], said: str | None
) -> None:
    """Whoever names one means it to be used."""
    found = config.with_roles(roles(tmp_path, text), given).ignored
    assert found is None if said is None else found is not None and said in found


def test_the_older_name_of_the_largest_model_is_read(tmp_path: Path) -> None:
    """A study file from when the largest model was always the teacher still works."""
    path = tmp_path / "study.toml"
    path.write_text('name = "x"\nteacher_name = "t"\n' + CERTIFYING)
    assert config.read(path).largest_name == "t"


def test_the_log_names_the_checkpoint_of_each_role(tmp_path: Path) -> None:
    """Four roles, one line."""
    study = roles(tmp_path, 'teacher = ["A", "C"]\nweights = "W"\nreference = "R"\n')
    assert study.roles == (
        "teacher: A, C; weights: the largest model's; largest model: t, trained from W; reference: R"
    )
