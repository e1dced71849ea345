"""Students of one study beside one of them: what each technique of compression saves and costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from optimizer.benchmarks import students
from optimizer.benchmarks.results import STUDENTS, Interval, StudentComparison, read
from optimizer.benchmarks.students import Measured, verdicts
from optimizer.cli import main
from optimizer.study import config as configs

COMPRESSION = configs.DEFAULT_STUDY.with_name("compression.toml")

STUDY = """
name = "techniques"
teacher = "{teacher}"
largest_name = "whole"
max_tokens = 64
report = ["test.json"]

[[data]]
source = "train.json.xz"
by_article = true
certifies = true

[distill]
hidden_weight = 0.0
intermediate_weight = 0.0

[[distill.intermediate]]
loss = "relations"
heads = 2

[publish]
profile_runs = 5
"""

TECHNIQUES: Mapping[str, str] = {
    "nothing": "",
    "labels": "distill = { label_weight = 1.0 }",
    "relations": "distill = { intermediate_weight = 1.0 }",
    "words": "embedding_bits = 4",
    "ticket": 'prune = { weights = 0.5, ticket = "nothing" }',
    "fp32": 'start = "nothing"\nprecision = "fp32"',
    "fp16": 'start = "nothing"\nprecision = "fp16"',
}


def student_of(name: str, given: str) -> str:
    usual = {"layers": "[0, 1]", "ffn": "96", "train": "{ epochs = 0.2, batch_size = 8 }"}
    usual = {key: value for key, value in usual.items() if f"{key} = " not in given}
    if "start = " in given:
        del usual["train"]
    lines = [f'name = "{name}"', given, *(f"{key} = {value}" for key, value in usual.items())]
    return "\n".join(["[[students]]", *lines, ""])


@pytest.fixture(scope="module")
def options(
    tiny_backbone: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = tmp_path_factory.mktemp("techniques")
    file = folder / "study.toml"
    made = (student_of(name, given) for name, given in TECHNIQUES.items())
    file.write_text("\n".join([STUDY.format(teacher=tiny_backbone), *made]))
    run_dir = str(folder / "run")
    return ["--study", str(file), "--data-dir", str(tiny_data), "--run-dir", run_dir]


def test_a_study_ends_in_one_table(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every technique is trained for as long, and is held against `nothing`; what is trained may be looked at before."""
    assert main.main(["compare", "students", *options]) == 1
    assert "bertier-optimize distill" in capsys.readouterr().err
    assert main.main(["distill", *options, "--only", "nothing", "--only", "labels"]) == 0
    capsys.readouterr()
    assert main.main(["compare", "students", *options, "--only", "labels"]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip(" `") for line in lines if "|" in line] == [
        "nothing",
        "labels",
    ]
    assert main.main(["distill", *options]) == 0
    capsys.readouterr()
    assert main.main(["compare", "students", *options]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("| student | MB | p50 ms | p95 ms | F1 forced | F1 | F1 minus `nothing`")
    rows = {cells[1].strip(" `"): cells for line in lines if (cells := line.split("|"))[1:]}
    assert list(rows) == ["whole", *TECHNIQUES]
    found = read(StudentComparison, Path(options[-1]) / STUDENTS)
    assert found is not None
    assert found.teacher_s  # asked once, not for every batch: only relations look into it
    by_name = {student.name: student for student in found.students}
    once = by_name["nothing"].steps
    twice = {"whole": 0, "ticket": 2 * once}  # which masks a ticket has, another training says
    assert {s.name: s.steps for s in found.students} == dict.fromkeys(by_name, once) | twice
    assert by_name["whole"].train_s is None
    assert by_name["fp32"].train_s == by_name["nothing"].train_s
    assert all(s.train_s for s in found.students if s.name != "whole")
    assert by_name["words"].size_bytes < by_name["nothing"].size_bytes
    assert by_name["fp32"].size_bytes > by_name["fp16"].size_bytes > by_name["nothing"].size_bytes
    assert (found.against, found.data, by_name["nothing"].f1_difference) == (
        "nothing",
        "test",
        None,
    )
    for student in found.students:
        if (less := student.f1_difference) is not None:
            assert less.mean == pytest.approx(student.f1 - by_name["nothing"].f1)


def test_an_unknown_student_is_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names those that there are."""
    assert main.main(["compare", "students", *options, "--against", "none"]) == 1
    assert "--against none: not among nothing, labels" in capsys.readouterr().err
    assert main.main(["compare", "students", *options, "--only", "none"]) == 1
    assert "--only none: not among whole, nothing, labels" in capsys.readouterr().err


# Verdicts

SPREAD = 0.02  # of an interval, to both sides


def less(a: Measured, b: Measured) -> Interval:
    mean = float((a.f1 - b.f1).mean())
    return Interval(mean, mean - SPREAD, mean + SPREAD)


def measured(name: str, size_bytes: int, p50_ms: float, f1: float) -> Measured:
    return Measured(name, size_bytes, p50_ms, 2 * p50_ms, np.array([f1]), np.array([f1]))


BASE = measured("nothing", 1000, 10.0, 0.60)


@pytest.mark.parametrize(
    ("size_bytes", "p50_ms", "f1", "said"),
    [
        (1000, 10.0, 0.65, "better"),
        (500, 10.0, 0.50, "trade-off"),
        (1000, 5.0, 0.50, "trade-off"),
        (2000, 10.0, 0.70, "trade-off"),
        (1000, 10.0, 0.61, "no gain"),
        (995, 9.5, 0.60, "no gain"),
        (500, 20.0, 0.60, "trade-off"),
        (1000, 10.0, 0.55, "dominated by nothing"),
        (2000, 10.0, 0.61, "dominated by nothing"),
        (500, 10.0, 0.59, "free"),
    ],
)
def test_the_verdict_follows_from_costs_and_the_interval(
    size_bytes: int, p50_ms: float, f1: float, said: str
) -> None:
    """What the profile or the questions cannot tell apart counts as equal."""
    other = measured("other", size_bytes, p50_ms, f1)
    found = verdicts([BASE, other], "nothing", less)
    assert found["other"] == said
    beaten = said in ("better", "free")
    assert found["nothing"] == ("dominated by other" if beaten else students.REFERENCE)


def test_the_best_of_those_that_dominate_is_named() -> None:
    """A reader who may take any takes that one."""
    others = [measured("good", 900, 10.0, 0.66), measured("fair", 800, 10.0, 0.64)]
    assert verdicts([BASE, *others], "nothing", less)["nothing"] == "dominated by good"


def test_two_variants_never_dominate_each_other() -> None:
    """Whatever counts as equal."""
    rng = np.random.default_rng(3)
    some = [
        measured(str(i), int(rng.integers(950, 1050)), rng.uniform(9, 11), rng.uniform(0.5, 0.6))
        for i in range(40)
    ]
    for a in some:
        for b in some:
            assert not (students.dominates(a, b, less) and students.dominates(b, a, less))


# The study that ships


def test_all_techniques_have_one_budget_and_one_teacher() -> None:
    """What differs is the technique: each takes as many steps as `longer`, from the same weights or encoder."""
    study = configs.read(COMPRESSION)
    nothing, longer, *others = study.students
    assert (nothing.name, longer.name, longer.start) == ("nothing", "longer", "nothing")
    assert nothing.train is not None
    assert longer.train is not None
    for other in others:
        if other.start == "longer":
            assert other.train is None
        elif other.start == "nothing":
            assert other.train == longer.train
        else:
            assert (other.start, other.base) == (None, nothing.base)
            assert other.train is not None
            assert other.train.epochs == nothing.train.epochs + longer.train.epochs
    alone = [other for other in others if not other.name.startswith("combined")]
    usual = nothing.model_dump(exclude={"name", "start", "base", "train"})
    for other in alone:
        kept = other.model_dump(exclude={"name", "start", "base", "train", "drop_after"})
        assert sum(usual[key] != value for key, value in kept.items()) == 1, other.name
