"""catalog.json: the one contract between optimizer and gateway. Read, validated, written here only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

from gateway.catalog import rules
from gateway.catalog.rules import Problem
from gateway.catalog.schema import QA, Plan, Variant
from gateway.errors import RepositoryError

# Version 2 has tasks beside question answering; what has none stays version 1, which older gateways read.
SchemaVersion = Literal[1, 2]
SCHEMA_VERSION: Literal[1] = 1
WITH_TASKS: Literal[2] = 2
CATALOG = "catalog.json"
PREVIOUS = "catalog.previous.json"
TOKENIZER = "tokenizer.json"
BY_LAYER = ("layer_heads", "layer_ffn", "layer_keep")  # of a shape whose layers differ
PART, KEEP = ".part", ".keep"  # of a catalog that is being written, and of the one before


@dataclass(frozen=True, slots=True)
class GoldenInput:
    """A question whose logits every variant has stored: asked again at start and at every switch."""

    question: str
    context: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the catalog comes from."""

    study: str
    commit: str
    date: str  # ISO 8601, UTC
    seed: int
    data_sha256: dict[str, str]
    # Absent from early catalogs.
    split_version: int = 1  # how questions were set aside from training
    trained_on: tuple[
        str, ...
    ] = ()  # of data_sha256; empty: all of it but what was only reported on


@dataclass(frozen=True, slots=True)
class GoldenTexts:
    """The same for a classification."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A classification: of a text, or of a pair of texts."""

    name: str
    labels: tuple[str, ...]  # in the order of the logits
    pair: bool
    golden_inputs: tuple[GoldenTexts, ...]
    origin: Origin  # of its variants and plans


@dataclass(frozen=True, slots=True)
class Look:
    """A use of a data set to make floors: it spends a part of delta, whatever its result."""

    data: tuple[str, ...]  # of each data set: its sha256 and the version of its split
    claims: str  # sha256 of what was certified: models, decoding, method
    study: str
    date: str  # ISO 8601, UTC
    delta: float  # that all looks at this data may spend together
    spent: float
    methods: tuple[str, ...] = ()  # that made its floors, the present one last; empty: version 1


@dataclass(frozen=True, slots=True)
class Catalog:
    """Variants, plans with certificates, and what they were measured with."""

    # It holds for everything inside, too.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: SchemaVersion
    origin: Origin  # of question answering; without it, of the first task
    tokenizer_sha256: str
    variants: tuple[Variant, ...]
    plans: tuple[Plan, ...]
    golden_inputs: tuple[GoldenInput, ...]  # of question answering
    looks: tuple[Look, ...] = ()  # the history of certification; absent from early catalogs
    tasks: tuple[
        Task, ...
    ] = ()  # the classifications; absent: questions are answered, nothing else

    def variant(self, name: str) -> Variant:
        return next(v for v in self.variants if v.name == name)

    def direct(self, variant: str) -> Plan:
        """The plan of a variant alone; every variant has one."""
        return next(p for p in self.plans if p.variants == (variant,))

    def task_of(self, plan: Plan) -> str:
        """The task of a plan: that of its variants."""
        return self.variant(plan.variants[0]).task

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that have variants, question answering first."""
        qa = (QA,) if any(not v.classifies for v in self.variants) else ()
        return (*qa, *(task.name for task in self.tasks))

    def only(self, task: str) -> Catalog:
        """Return the part of one task, a catalog of its own; of the only task, the catalog itself."""
        if self.task_names == (task,):
            return self
        variants = tuple(v for v in self.variants if v.task == task)
        names = {v.name for v in variants}
        tasks = tuple(t for t in self.tasks if t.name == task)
        return replace(
            self,
            schema_version=version_of(tasks),
            origin=tasks[0].origin if tasks else self.origin,
            variants=variants,
            plans=tuple(p for p in self.plans if names.issuperset(p.variants)),
            golden_inputs=self.golden_inputs if task == QA else (),
            tasks=tasks,
        )

    @property
    def best_floor(self) -> float:
        """The largest certified floor of any plan; compare the plans of one task only (`only`)."""
        return max(plan.certified_f1 for plan in self.plans)


_ADAPTER = TypeAdapter(Catalog)


def version_of(tasks: tuple[Task, ...]) -> SchemaVersion:
    """Return the version that a catalog with these classifications has."""
    return WITH_TASKS if tasks else SCHEMA_VERSION


def model_path(repository: Path, variant: Variant) -> Path:
    return repository / variant.name / str(variant.version) / "model.onnx"


def read(repository: Path) -> Catalog:
    """Return the catalog of a repository. Raises: RepositoryError."""
    return parse(read_bytes(repository), repository / CATALOG)


def read_questions(repository: Path) -> Catalog:
    """Return the part of a repository that answers questions. Raises: RepositoryError, also where there is none."""
    catalog = read(repository)
    if QA not in catalog.task_names:
        raise RepositoryError(
            f"{repository / CATALOG}: no variant answers questions, only {', '.join(catalog.task_names)};"
            " name a repository with a question-answering model"
        )
    return catalog.only(QA)


def read_bytes(repository: Path) -> bytes:
    path = repository / CATALOG
    try:
        return path.read_bytes()
    except OSError as exc:
        raise RepositoryError(
            f"{path}: {exc.strerror}; publish models with 'bertier-optimize publish',"
            " or point --model-repository at a folder that holds some"
        ) from exc


def parse(raw: bytes, path: Path) -> Catalog:
    """Return a validated catalog. Raises: RepositoryError, naming the first thing that is wrong."""
    try:
        document = json.loads(raw)
    except ValueError as exc:
        raise RepositoryError(f"{path}: not JSON: {exc}; publish again, or roll back") from exc
    _check_schema(document, path)
    try:
        catalog = _ADAPTER.validate_json(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RepositoryError(f"{path}: {where or 'whole file'}: {first['msg']}") from exc
    _check_values(catalog, path)
    return catalog


def dump(catalog: Catalog) -> bytes:
    """Return the text of a catalog."""
    document = _ADAPTER.dump_python(catalog, mode="json")
    return to_json(_without_absent(document), indent=1) + b"\n"


def _without_absent(document: dict[str, Any]) -> dict[str, Any]:
    """Return a catalog's JSON without the fields of what it does not have: classifications, uneven layers.

    An older gateway reads a catalog without them, and refuses every key that it does not know.
    """
    if not document["tasks"]:
        del document["tasks"]
    for variant in document["variants"]:
        decoding = variant["decoding"]
        if decoding["temperature"] is None:
            del decoding["temperature"]
        else:
            variant["decoding"] = {"temperature": decoding["temperature"]}
        if variant["task"] == QA:
            del variant["task"]
        even = [name for name in BY_LAYER if not variant["shape"][name]]
        variant["shape"] = {k: v for k, v in variant["shape"].items() if k not in even}
        for quality in variant["quality"]:
            if not quality["metrics"]:
                del quality["metrics"]
    return document


def write(repository: Path, catalog: Catalog) -> None:
    """Replace the catalog by one rename; the one before stays beside it for a rollback.

    Raises: RepositoryError when it is one that no gateway would read.
    """
    prepare(repository, catalog)
    switch(repository)


def prepare(repository: Path, catalog: Catalog) -> None:
    """Write everything that a switch needs except the renames: a full disk fails here.

    Raises: RepositoryError when it is one that no gateway would read.
    """
    path = repository / CATALOG
    _check_values(catalog, path)
    try:
        path.with_suffix(PART).write_bytes(dump(catalog))
        if path.exists():
            path.with_suffix(KEEP).write_bytes(path.read_bytes())
    except OSError:
        discard(repository)
        raise


def note_looks(repository: Path, looks: tuple[Look, ...]) -> None:
    """Add the looks to the catalog in place; the previous catalog for a rollback stays."""
    path = repository / CATALOG
    catalog = replace(read(repository), looks=looks)
    path.with_suffix(PART).write_bytes(dump(catalog))
    os.replace(path.with_suffix(PART), path)


def discard(repository: Path) -> None:
    """Remove the prepared files."""
    for suffix in (PART, KEEP):
        (repository / CATALOG).with_suffix(suffix).unlink(missing_ok=True)


def switch(repository: Path) -> None:
    """Put the prepared catalog in place, and the one before beside it."""
    path = repository / CATALOG
    if path.with_suffix(KEEP).exists():
        os.replace(path.with_suffix(KEEP), repository / PREVIOUS)
    os.replace(path.with_suffix(PART), path)


def check_files(repository: Path, catalog: Catalog) -> list[str]:
    """Return everything wrong with the files that the catalog names, one line each."""
    files = [(model_path(repository, v), v.sha256) for v in catalog.variants]
    found = [_check_hash(path, sha256) for path, sha256 in files]
    problems = [p for p in (check_tokenizer(repository, catalog), *found) if p is not None]
    for variant in catalog.variants:
        config = repository / variant.name / "config.pbtxt"
        if not config.exists():
            problems.append(f"{config}: missing; publish {variant.name} again")
        elif variant.sha256 not in config.read_text(errors="replace"):
            problems.append(f"{config}: does not carry the catalog's sha256 of {variant.name}")
    return problems


def check_tokenizer(repository: Path, catalog: Catalog) -> str | None:
    """Return what is wrong with the tokenizer file, if anything."""
    return _check_hash(repository / TOKENIZER, catalog.tokenizer_sha256)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(path: Path, sha256: str) -> str | None:
    if not path.exists():
        return f"{path}: missing; check it out again, or publish it"
    found = sha256_of(path)
    if found != sha256:
        return f"{path}: sha256 is {found[:12]}..., the catalog says {sha256[:12]}..."
    return None


def _check_schema(document: Any, path: Path) -> None:
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version in (SCHEMA_VERSION, WITH_TASKS):
        return
    hint = "is newer than this gateway; upgrade bertier"
    if not isinstance(version, int) or version < SCHEMA_VERSION:
        hint = "is not a catalog of this project"
    raise RepositoryError(
        f"{path}: schema_version {version!r} {hint}"
        f" (it reads versions {SCHEMA_VERSION} and {WITH_TASKS})"
    )


def _check_values(catalog: Catalog, path: Path) -> None:
    """Raise RepositoryError with the path of the first value that may not be so."""
    found = list(_problems(catalog))
    if not found:
        return
    where, what = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise RepositoryError(f"{path}: {where}: {what}{more}")


def _problems(catalog: Catalog) -> Iterator[Problem]:
    yield from rules.sha256_problems("tokenizer_sha256", catalog.tokenizer_sha256)
    yield from _origin_problems("origin", catalog.origin)
    for place in ("variants", "plans"):
        if not getattr(catalog, place):
            yield place, "empty: publish at least one variant"
    if not catalog.golden_inputs and (QA in catalog.task_names or not catalog.variants):
        yield "golden_inputs", "empty: publish at least one variant"
    for i, golden in enumerate(catalog.golden_inputs):
        if not golden.question.strip() or not golden.context.strip():
            yield f"golden_inputs.{i}", "a text without a visible character"
    for i, look in enumerate(catalog.looks):
        yield from rules.look_problems(f"looks.{i}", look.delta, look.spent)
    yield from _task_problems(catalog)
    yield from _variant_problems(catalog)
    yield from _plan_problems(catalog)


def _origin_problems(where: str, origin: Origin) -> Iterator[Problem]:
    for name, sha256 in origin.data_sha256.items():
        yield from rules.sha256_problems(f"{where}.data_sha256.{name}", sha256)


def _task_problems(catalog: Catalog) -> Iterator[Problem]:
    wanted, n_tasks = version_of(catalog.tasks), len(catalog.tasks)
    if catalog.schema_version != wanted:
        yield (
            "schema_version",
            f"{catalog.schema_version} with {n_tasks} classifications; it must be {wanted}",
        )
    yield from rules.repeated("tasks", (t.name for t in catalog.tasks))
    published = {v.task for v in catalog.variants}
    for i, task in enumerate(catalog.tasks):
        where = f"tasks.{i}"
        yield from rules.task_problems(where, task.name, task.labels)
        yield from _origin_problems(f"{where}.origin", task.origin)
        if task.name not in published:
            yield where, f"no variant is of the task {task.name!r}; remove it, or publish one"
        if not task.golden_inputs:
            yield f"{where}.golden_inputs", "empty: publish at least one variant"
        for j, golden in enumerate(task.golden_inputs):
            texts = [golden.text] if golden.text_pair is None else [golden.text, golden.text_pair]
            if not all(text.strip() for text in texts):
                yield f"{where}.golden_inputs.{j}", "a text without a visible character"
            if (golden.text_pair is not None) is not task.pair:
                yield f"{where}.golden_inputs.{j}", f"does not fit pair: {str(task.pair).lower()}"


def _variant_problems(catalog: Catalog) -> Iterator[Problem]:
    yield from rules.repeated("variants", (v.name for v in catalog.variants))
    n_golden = {QA: len(catalog.golden_inputs)}
    n_golden |= {task.name: len(task.golden_inputs) for task in catalog.tasks}
    n_labels = {task.name: len(task.labels) for task in catalog.tasks}
    for i, variant in enumerate(catalog.variants):
        if variant.task not in n_golden:
            yield f"variants.{i}.task", f"{variant.task!r} is not among the tasks of this catalog"
            continue
        yield from rules.variant_problems(
            f"variants.{i}", variant, n_golden[variant.task], n_labels.get(variant.task, 0)
        )


def _plan_problems(catalog: Catalog) -> Iterator[Problem]:
    yield from rules.repeated("plans", (p.name for p in catalog.plans))
    for i, plan in enumerate(catalog.plans):
        yield from rules.plan_problems(f"plans.{i}", plan, catalog.variants)
    direct = {plan.variants[0] for plan in catalog.plans if len(plan.variants) == 1}
    for i, variant in enumerate(catalog.variants):
        if variant.name not in direct:
            yield f"variants.{i}", f"no direct plan for {variant.name}; it could not be pinned"
