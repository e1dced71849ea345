"""What a teacher answered is asked once, and survives whatever happens to the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimizer.data.question_sets import Example
from optimizer.teachers import checkpoint, inference
from optimizer.teachers.errors import TeacherError
from optimizer.teachers.inference import ask
from optimizer.teachers.mapping import KEPT, Spread
from optimizer.teachers.store import AnswerStore, key_of
from tests.optimizer.teachers import families

RNG = np.random.default_rng(4)


def spread() -> Spread:
    return Spread(
        RNG.integers(0, 900, (2, KEPT), np.int32), RNG.random((2, KEPT)).astype(np.float16)
    )


def keys(n: int, first: int = 0) -> list[bytes]:
    return [key_of(f"question {i}", "context") for i in range(first, first + n)]


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    """By another process, from several files."""
    added = [spread() for _ in range(5)]
    store = AnswerStore(tmp_path)
    store.add(keys(3), added[:3])
    store.add(keys(2, 3), added[3:])
    again = AnswerStore(tmp_path)
    assert len(again) == 5
    for key, wanted in zip(keys(5), added, strict=True):
        assert np.array_equal(again[key].places, wanted.places)
        assert np.array_equal(again[key].shares, wanted.shares)


def test_sixty_thousand_questions_take_less_than_a_hundred_megabytes(tmp_path: Path) -> None:
    """Whatever the length of their contexts."""
    store = AnswerStore(tmp_path)
    n = 60_000
    store.add([i.to_bytes(16, "big") for i in range(n)], [spread()] * n)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 15e6


def test_a_damaged_file_costs_its_own_questions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are asked again; the others are not."""
    store = AnswerStore(tmp_path)
    store.add(keys(3), [spread()] * 3)
    (first,) = tmp_path.iterdir()
    store.add(keys(2, 3), [spread()] * 2)
    first.write_bytes(first.read_bytes()[:-200])
    again = AnswerStore(tmp_path)
    assert len(again) == 2
    assert "damaged" in caplog.text


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    """What is there is kept, and no half file stays."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(
        TeacherError, match=r"cannot be written to .*; the 0 answers there are kept"
    ):
        AnswerStore(blocked / "answers").add(keys(1), [spread()])


def examples(n: int) -> list[Example]:
    contexts = [f"Bridge number {i // 3} was designed by Ada Brunner." for i in range(n)]
    return [
        Example(str(i), f"Who designed it, {i}?", c, (), (), "") for i, c in enumerate(contexts)
    ]


class Stopped(Exception):
    """Stands for an interrupt."""


def test_an_interrupted_teacher_goes_on(tmp_path: Path) -> None:
    """Every batch that was answered is kept, though no file was due yet."""
    teacher = checkpoint.load(str(families.save("bert", tmp_path / "t")))
    whole, broken = AnswerStore(tmp_path / "whole"), AnswerStore(tmp_path / "broken")
    asked = examples(5 * inference.BATCH)
    ask(teacher, asked, whole)
    left = [3]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped

    handle = teacher.model.register_forward_pre_hook(count)
    with pytest.raises(Stopped):
        ask(teacher, asked, broken)
    assert len(AnswerStore(tmp_path / "broken")) == 3 * inference.BATCH
    left[0] = 2  # so many batches are missing
    again = AnswerStore(tmp_path / "broken")
    ask(teacher, asked, again)
    handle.remove()
    for e in asked:
        key = key_of(e.question, e.context)
        assert np.array_equal(again[key].places, whole[key].places)
        assert np.allclose(again[key].shares, whole[key].shares, atol=1e-3)


KILLED = """
import sys
from pathlib import Path
from optimizer.teachers import checkpoint
from optimizer.teachers.inference import ask
from optimizer.teachers.store import AnswerStore
from tests.optimizer.teachers.test_store import examples
class Telling(AnswerStore):
    def add(self, keys, spreads):
        super().add(keys, spreads)
        print(len(self), flush=True)
ask(checkpoint.load(sys.argv[1]), examples(4000), Telling(Path(sys.argv[2])), write_every_s=0.0)
"""


def test_a_killed_teacher_has_kept_what_it_had_written(tmp_path: Path) -> None:
    """SIGKILL in the middle leaves whole files alone."""
    folder, answers = families.save("bert", tmp_path / "t"), tmp_path / "answers"
    command = [sys.executable, "-c", KILLED, str(folder), str(answers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(3)]
        process.kill()
    assert int(printed[-1]) == 3 * inference.BATCH
    n_files = len(list(answers.glob("*.npz")))
    assert n_files >= 3
    assert len(AnswerStore(answers)) >= 3 * inference.BATCH
    assert len(list(answers.glob("*.npz"))) == n_files
