"""The questions or labelled texts of a study, split for training, search and certification."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gateway.catalog.store import sha256_of
from optimizer.data import (
    augmented,
    clusters,
    labelled_texts,
    question_files,
    question_sets,
)
from optimizer.data.question_sets import DataError, Example, Split
from optimizer.study import store
from optimizer.study.config import DataConfig, StudyConfig


@dataclass(frozen=True)
class StudyQuestions:
    """The sources that a study file names, each split once: `Example`s, or with a task `LabelledText`s."""

    config: StudyConfig
    data_dir: Path
    folder: Path | None = None  # of generated questions; None: use only those of the files

    def path(self, source: str) -> str:
        """Return the known name of a source, or the path of its file, fetched from a store once."""
        if source in question_sets.BY_NAME:
            return source
        path = self.data_dir / source
        if not path.exists() and (kept := store.of(path)):
            kept.fetch_file(path)
        return str(path)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of the study's task; none: it answers questions. Raises: DataError."""
        task = self.config.task
        paths = [Path(self.path(d.source)) for d in self.config.data]
        return labelled_texts.labels_of(paths, task) if task else ()

    def report(self, source: str) -> list[Any]:
        """Return a test set. Raises: DataError."""
        if self.config.task is None:
            return list(question_sets.load(self.path(source)))
        return self._load(source)

    def _load(self, source: str) -> list[Any]:
        if self.config.task is None:
            return list(question_files.of_study(self.path(source)))
        path = Path(self.path(source))
        return list(labelled_texts.load(path, self.config.task, self.labels))

    @cached_property
    def by_source(self) -> dict[str, dict[Split, list[Any]]]:
        """Every question or text of the study, by source and split."""
        return {source.source: self._split(source) for source in self.config.data}

    @cached_property
    def made(self) -> dict[Split, list[Example]]:
        """Return the unanswerable questions generated for training and search."""
        if self.folder is None:
            return {split: [] for split in Split}
        return augmented.made(self.config, self.by_source, self.hashes(), self.folder)

    def train(self, fraction: float = 1.0, only: Collection[str] = ()) -> list[Any]:
        """Return the training questions or texts of this share of the contexts, without contexts that are held out.

        `only`: sources; empty: all. Raises: DataError when no question has an answer, or all texts one label.
        """
        sources = self.by_source.values()
        held_out = {e.context for s in sources for e in s[Split.SEARCH] + s[Split.CALIBRATE]}
        picked = [s for name, s in self.by_source.items() if not only or name in only]
        given = [e for s in picked for e in s[Split.TRAIN]]
        contexts = {e.context for e in given}
        made = [e for e in self.made[Split.TRAIN] if e.context in contexts]
        allowed = [e for e in given + made if e.context not in held_out]
        found = question_sets.sample_contexts(allowed, fraction, self.config.seed)
        if self.labels:
            self._check_labels(found)
        elif not any(e.answerable for e in found):
            raise DataError(
                f"{', '.join(self.by_source)}: none of {len(found)} training questions has an answer,"
                " so there are no spans to learn; look for `is_impossible` and empty `answers`, or"
                " raise `fraction`"
            )
        return found

    def _check_labels(self, found: Collection[labelled_texts.LabelledText]) -> None:
        """Raises: DataError where the training texts do not tell labels apart."""
        counts = labelled_texts.counts_of(found)
        if sum(n > 0 for n in counts.values()) < 2:
            raise DataError(
                f"{', '.join(self.by_source)}: the {len(found)} training texts have"
                f" {' or '.join(label for label, n in counts.items() if n) or 'no label'} alone, so there is"
                " nothing to tell apart; give texts of at least two labels, or raise `fraction`"
            )

    def certifying(self, split: Split) -> list[Any]:
        """Return a split of the certifying sources, which thresholds and floors are made from.

        Of labelled texts at most MOST_CERTIFYING, by hash: more would take long and say little more.
        """
        sources = [s.source for s in self.config.data if s.certifies]
        found = [e for source in sources for e in self.by_source[source][split]]
        if self.config.task is None or len(found) <= labelled_texts.MOST_CERTIFYING:
            return found
        kept = set(clusters.shuffled(e.context for e in found)[: labelled_texts.MOST_CERTIFYING])
        return [e for e in found if e.context in kept]

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of every question set, by the file's name or its own."""
        sources = [*(d.source for d in self.config.data), *self.config.report]
        paths = {Path(s).name: question_sets.path_of(self.path(s)) for s in sources}
        return {name: sha256_of(path) for name, path in paths.items() if path.exists()}

    def _split(self, source: DataConfig) -> dict[Split, list[Any]]:
        found: dict[Split, list[Any]] = {split: [] for split in Split}
        task = self.config.task
        grouped = source.by_article or (task is not None and task.group is not None)
        for example in self._load(source.source):
            split = question_sets.split_of(example, by_article=grouped, certifies=source.certifies)
            found[split].append(example)
        found[Split.TRAIN] = question_sets.sample_contexts(
            found[Split.TRAIN], source.fraction, self.config.seed
        )
        return found
