"""A study file that cannot work is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.study import config, same_task
from optimizer.study.config import ConfigError, TaskConfig
from optimizer.study.space import RECIPE_KNOBS

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
            'largest = "t"\n' + HEAD + CERTIFYING + TASK,
            "nli classifies, and largest is published unchanged, .* name it as teacher",
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


SPACE = "[elastic.space]\nlayers = [[0, 1]]\nheads = [1]\nffn = [8]\n"


@pytest.mark.parametrize(
    ("recipe", "others", "said"),
    [
        ("temprature = [1]", "", "temprature: must be one of temperature, label_weight"),
        ("epochs = [1]", "", "epochs: must be one of"),
        ("temperature = []", "", "temperature: name at least one value"),
        ("label_weight = [0.5, 2]", "", "label_weight: .*less than or equal to 1"),
        ("warmup = [1]", "", "warmup: .*less than 1"),
        ("early_weight = [1]", "", "early_weight has no effect: no candidate drops tokens"),
        ("intermediate_weight = [1]", "", "intermediate_weight has no effect: the study has no"),
        (
            "temperature = [1, 2]",
            "[distill]\nlabels_only = true\n",
            "temperature has no effect: .*labels_only",
        ),
        (
            "temperature = [1, 2]",
            "[distill]\nlabel_weight = 1\n",
            "temperature has no effect where label_weight is 1",
        ),
        ("temperature = [1]\nlabel_weight = [1]", "", "temperature has no effect where"),
        (
            "hidden_weight = [0, 1]",
            'backbone = "B"\nweights = "W"\n',
            "hidden_weight has no effect",
        ),
    ],
)
def test_a_recipe_that_changes_nothing_is_refused(
    tmp_path: Path, recipe: str, others: str, said: str
) -> None:
    """A dimension without an effect costs trials, and its message says what to do."""
    head, tables = ("", others) if others.startswith("[") else (others, "")
    path = tmp_path / "study.toml"
    text = f"{head}{HEAD}{CERTIFYING}{tables}{SPACE}[search.training.space]\n{recipe}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.read(path)


def test_a_recipe_may_name_every_key_that_has_an_effect(tmp_path: Path) -> None:
    """Those of [distill] and those of a training, with a training that all have in common."""
    path = tmp_path / "study.toml"
    path.write_text(
        f"{HEAD}{CERTIFYING}{SPACE}keep = [1.0, 0.5]\ndrop_after = [1]\n"
        '[[distill.intermediate]]\nloss = "relations"\n'
        "[search.training]\ntrain = { epochs = 0.25 }\n[search.training.space]\n"
        "temperature = [1, 4]\nlabel_weight = [0.1, 1]\nhidden_weight = [0, 1]\nearly_weight = [0.5]\n"
        "intermediate_weight = [0, 1]\nlearning_rate = [1e-4]\nwarmup = [0, 0.1]\nweight_decay = [0, 0.01]\n"
    )
    training = config.read(path).search.training  # type: ignore[union-attr]
    assert training is not None
    assert set(training.space) == set(RECIPE_KNOBS)
    assert training.train.epochs == 0.25


INSIDE = '[[distill.intermediate]]\nloss = "hidden"\nlayers = "uniform"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + CERTIFYING + INSIDE.replace("uniform", "first"), "distill.intermediate.0.hidden"),
        (HEAD + CERTIFYING + INSIDE.replace("hidden", "states"), "'hidden', 'relations'"),
        (HEAD + CERTIFYING + INSIDE.replace('"uniform"', "[]"), "name at least one pair"),
        (HEAD + CERTIFYING + "[distill]\nlabels_only = true\n" + INSIDE, "remove labels_only"),
        (
            'teacher = "A"\nweights = "W"\n' + HEAD + CERTIFYING + INSIDE,
            "largest model, but teacher",
        ),
    ],
)
def test_an_intermediate_loss_that_cannot_be_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    """By its key, and with what to change."""
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.read(path)


def test_a_study_without_intermediate_losses_says_nothing_of_them() -> None:
    """What was trained before there were any stays valid."""
    assert not {"intermediate", "intermediate_weight"} & set(config.DistillConfig().model_dump())


def test_a_student_may_learn_in_another_way_than_the_others(tmp_path: Path) -> None:
    """As a finished member does, whose search chose it."""
    path = tmp_path / "study.toml"
    path.write_text(HEAD + CERTIFYING + STUDENT + "distill = { temperature = 4 }\n")
    assert config.read(path).students[0].distill == {"temperature": 4.0}
    path.write_text(HEAD + CERTIFYING + STUDENT + "distill = { learning_rate = 4 }\n")
    with pytest.raises(ConfigError, match="learning_rate: must be one of temperature"):
        config.read(path)


WIDTHS = '[[students]]\nname = "s"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layers = [0, 1]\nffn = [8]\n", r"s: ffn \[8\]: 1 widths for 2 layers"),
        ("layers = [0]\nffn = 8\nheads = [1, 2]\n", r"s: heads \[1, 2\]: 2 widths for 1 layers"),
        ("layers = [0, 1]\nffn = [8, 0]\n", "s: ffn 0: a layer keeps at least 1, because INT8"),
        ("layers = [0]\nffn = 8\nheads = 0\n", "s: heads 0: a layer keeps at least 1"),
        ("layers = [0, 1]\nffn = { mean = 100 }\n", "ffn mean 100: .* multiples of 64; give one"),
        ("layers = [0, 1]\nffn = { mena = 64 }\n", "one key, as in { mean = 768 }"),
        (
            "layers = [0, 0]\nffn = { mean = 64 }\n",
            "ffn mean 64: layer 0 runs twice with one width",
        ),
        ("layers = [0, 1, 1]\nffn = [8, 8, 4]\n", "layer 1 runs twice .* give both runs one width"),
        (
            'layers = [0, 1]\nstart = "elastic"\nffn = [8, 4]\n',
            "start elastic is an elastic student, whose slices have one width",
        ),
    ],
)
def test_widths_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    """By the student's name and the key, with what to do."""
    path = tmp_path / "study.toml"
    path.write_text(HEAD + CERTIFYING + SPACE + WIDTHS + text)
    with pytest.raises(ConfigError, match=said):
        config.read(path)


DROPPING = "layers = [0, 1, 2]\nffn = 8\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep = 0.0\n", "s: keep 0: a share of the tokens is more than 0 and at most 1"),
        ("keep = 1.1\ndrop_after = 1\n", "s: keep 1.1: a share"),
        (
            "keep = 0.5\n",
            "s: keep 0.5: with drop_after 0 all 3 layers see all tokens; give drop_after",
        ),
        (
            "keep = 0.5\ndrop_after = 3\n",
            "s: keep 0.5: with drop_after 3 all 3 layers see all tokens",
        ),
        ("keep = [1.0, 0.5, 0.0]\n", "s: keep 0: a share"),
        ("keep = [1.5, 1.0, 0.5]\n", "s: keep 1.5: a share"),
        ("keep = [1.0, nan, 0.5]\n", "s: keep nan: a share"),
        ("keep = [1.0, 0.5]\n", r"s: keep \[1.0, 0.5\]: 2 shares for 3 layers; give one for each"),
        ("keep = []\n", r"s: keep \[\]: 0 shares for 3 layers"),
        ("keep = [1.0, 0.4, 0.5]\n", "rises to 0.5, but dropped tokens do not come back; give"),
        ("keep = [0.9, 0.5, 0.5]\n", "the first layer must see all tokens, .*; begin with 1.0"),
        (
            "keep = [1.0, 0.5, 0.5]\ndrop_after = 1\n",
            "says where .*; leave drop_after out, or give",
        ),
        (
            'start = "elastic"\nkeep = [1.0, 0.7, 0.5]\n',
            "start elastic is an elastic student, whose slices drop tokens once; give keep one share",
        ),
    ],
)
def test_shares_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    """By the student's name and the key, with what to do."""
    path = tmp_path / "study.toml"
    path.write_text(HEAD + CERTIFYING + SPACE + WIDTHS + DROPPING + text)
    with pytest.raises(ConfigError, match=said):
        config.read(path)


@pytest.mark.parametrize(
    ("text", "drops"),
    [
        ("", ()),
        ("keep = 1\ndrop_after = 1\n", ()),
        ("keep = 0.5\ndrop_after = 2\n", ((2, 0.5),)),
        ("keep = [1, 1, 1]\n", ()),
        ("keep = [1, 1, 0.5]\n", ((2, 0.5),)),
        ("keep = [1.0, 0.7, 0.4]\n", ((1, 0.7), (2, 0.4))),
    ],
)
def test_tokens_are_dropped_where_the_share_falls(
    tmp_path: Path, text: str, drops: tuple[tuple[int, float], ...]
) -> None:
    """One share and the layer that it begins after say what a list with two values says."""
    path = tmp_path / "study.toml"
    path.write_text(HEAD + CERTIFYING + WIDTHS + DROPPING + text)
    assert config.read(path).students[0].drops == drops


def test_a_slice_may_say_by_layer_where_it_drops_tokens(tmp_path: Path) -> None:
    """It is the same candidate, and so the same slice."""
    path = tmp_path / "study.toml"
    found = []
    for text in ("keep = 0.5\ndrop_after = 2\n", "keep = [1.0, 1.0, 0.5]\n"):
        path.write_text(
            HEAD + CERTIFYING + SPACE + WIDTHS + DROPPING + 'start = "elastic"\n' + text
        )
        found.append(config.read(path).students[0].candidate(1))
    assert found[0] == found[1]
    assert found[0].drops == ((2, 0.5),)


TICKET = '[[students]]\nname = "t"\nprune = { weights = 0.5, ticket = "s" }\n'
PRUNED = WIDTHS + "layers = [0, 1]\nffn = 512\nheads = 12\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            PRUNED + "prune = { ffn = 128 }\n",
            "s: prune needs a training in which its masks change; give train",
        ),
        (PRUNED + "train = {}\nprune = {}\n", "give ffn, heads or both"),
        (PRUNED + "train = {}\nprune = { ffn = 100 }\n", "prune.ffn: .* multiple of 64"),
        (PRUNED + "train = {}\nprune = { ffn = 512 }\n", "ffn 512: its layers have 512 before"),
        (PRUNED + "train = {}\nprune = { heads = 13 }\n", "heads 13: its layers have 12 before"),
        (
            PRUNED + "train = {}\nprune = { heads = 6, start = 0.6 }\n",
            "start 0.6 must be before end 0.6",
        ),
        (PRUNED + "train = {}\nprune = { weights = 1 }\n", "prune.weights: .* less than 1"),
        (
            PRUNED + "train = {}\nprune = { weights = 0.5, heads = 6 }\n",
            "weights goes with neither ffn nor heads",
        ),
        (
            PRUNED + 'train = {}\nprune = { weights = 0.5, method = "taylor" }\n',
            "method is of ffn and heads",
        ),
        (PRUNED + 'train = {}\nprune = { heads = 6, ticket = "t" }\n', "ticket needs weights"),
        (
            PRUNED + 'train = {}\nprune = { weights = 0.5, ticket = "t", start = 0.2 }\n',
            "masks are there from the first step on; leave start and end out",
        ),
        (
            PRUNED + "train = {}\n" + TICKET + "layers = [0]\nffn = 512\nheads = 12\ntrain = {}\n",
            "t: ticket s of prune has another layers; give both the same",
        ),
        (
            PRUNED + TICKET + PRUNED.replace(WIDTHS, "") + "train = {}\n",
            "t: ticket s of prune must be trained, and not pruned",
        ),
        (
            PRUNED + 'train = {}\nprune = { weights = 0.5, ticket = "s" }\n',
            "s: ticket s of prune must be a student listed before it",
        ),
        (
            PRUNED.replace("[0, 1]", "[0, 0]") + "train = {}\nprune = { heads = 6 }\n",
            "layer 0 runs twice with the same weights; name it once",
        ),
        (
            '[[distill.intermediate]]\nloss = "relations"\n'
            + PRUNED
            + "train = {}\nprune = { heads = 6 }\n",
            'loss = "relations" compares the attention of all heads',
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """Before anything is trained, with what to do."""
    path = tmp_path / "study.toml"
    path.write_text(HEAD + CERTIFYING + text)
    with pytest.raises(ConfigError, match=said):
        config.read(path)


def test_a_student_may_be_pruned_beside_losses_that_know_of_no_heads(tmp_path: Path) -> None:
    """Its neurons, or its heads where the relations do not count."""
    path = tmp_path / "study.toml"
    text = HEAD + CERTIFYING + '[[distill.intermediate]]\nloss = "relations"\n' + PRUNED
    path.write_text(text + "train = {}\nprune = { ffn = 128 }\n")
    assert config.read(path).students[0].prune == config.PruneConfig(ffn=128)
    idle = "distill = { intermediate_weight = 0 }\n"
    path.write_text(text + "train = {}\nprune = { heads = 6 }\n" + idle)
    assert config.read(path).students[0].prune == config.PruneConfig(heads=6)


def test_a_width_of_all_layers_is_trained_as_before(tmp_path: Path) -> None:
    """What decides on a training reads the same, so nothing is trained anew."""
    path = tmp_path / "study.toml"
    path.write_text(HEAD + CERTIFYING + STUDENT)
    found = config.read(path).students[0].model_dump(exclude_none=True)
    assert found["ffn"] == 8
    assert set(found) == {
        *("name", "layers", "ffn", "embedding_bits", "rank", "keep", "drop_after", "precision"),
    }


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
