"""Training rows come back from disk as they were made, and a damaged file is no row lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gateway.qa.codec import SpanEncoder
from optimizer.data import question_sets, row_cache
from optimizer.data.items import Feature
from optimizer.data.question_sets import Example
from tests.fakes import TOKENIZER

EXAMPLES = [
    Example("a", "Who came?", "Ada came at noon.", ("Ada", "Ada"), (0, 0), ""),
    Example("b", "When did she come?", "Ada came at noon.", ("noon", "at noon"), (12, 9), ""),
    Example("c", "Who left?", "Ada came at noon.", (), (), ""),
]


def kept(folder: Path, examples: Sequence[Example] = EXAMPLES, seed: int = 1) -> list[Feature]:
    return row_cache.features(examples, TOKENIZER, 64, seed, folder)


def same(found: Sequence[Feature], wanted: Sequence[Feature]) -> bool:
    return all(
        np.array_equal(a.input_ids, b.input_ids)
        and np.array_equal(a.token_type_ids, b.token_type_ids)
        and a.spans == b.spans
        for a, b in zip(found, wanted, strict=True)
    )


def test_rows_come_back_as_they_were_made(tmp_path: Path) -> None:
    """With every gold span: a second reading trains on the same."""
    made = question_sets.features(EXAMPLES, SpanEncoder.from_file(TOKENIZER).resized(64), 1)
    assert len(made[1].spans) == 2
    assert same(kept(tmp_path), made)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert same(kept(tmp_path), made)
    assert file.stat().st_mtime_ns == written


def test_other_questions_or_another_seed_are_other_rows(tmp_path: Path) -> None:
    """What was made for one training is never given to another."""
    kept(tmp_path)
    kept(tmp_path, EXAMPLES[:2])
    kept(tmp_path, seed=2)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    """A full disk or a kill costs the time, not the study."""
    made = kept(tmp_path)
    (file,) = tmp_path.iterdir()
    for damaged in (b"", file.read_bytes()[:200], b"no archive"):
        file.write_bytes(damaged)
        assert same(kept(tmp_path), made)
