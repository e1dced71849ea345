"""The values of a catalog: variants and plans with their measurements. Frozen; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter

ANSWERABLE, UNANSWERABLE = (
    "answerable",
    "unanswerable",
)  # kinds of questions: strata of a certificate
MAX_BATCH = 8  # windows in one request; max_batch_size of every batch-invariant variant
QA = "qa"  # the task of extractive question answering; every other task is a classification


class Precision(StrEnum):
    """The numeric precision of a model."""

    FP32 = "fp32"
    FP16 = "fp16"  # for a GPU
    INT8_DYNAMIC = "int8-dynamic"


class FloorScope(StrEnum):
    """The scope of a certificate whose floor and loss requests are routed by."""

    LOWER = "lower"  # the lowest of all scopes
    ALL = "all"  # all clusters, also those whose articles may have trained the models


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a BERT."""

    layers: int
    hidden: int
    heads: int  # of the layer with the most
    ffn: int  # of the widest layer
    vocabulary: int
    embedding_bits: int
    # Absent from the catalogs of early studies.
    rank: int = 0  # of the word embeddings, which a projection widens to `hidden`; 0: full
    keep: float = 1.0  # share of the tokens that the layers after `drop_after` see, or the last
    drop_after: int = 0  # layers that see all tokens; 0: all layers do
    relative_positions: bool = False  # attention scores have a bias by distance, as in MPNet
    layer_heads: tuple[int, ...] = ()  # of each layer, where they differ; empty: all have `heads`
    layer_ffn: tuple[int, ...] = ()  # likewise; empty: all have `ffn`
    layer_keep: tuple[float, ...] = ()  # of each layer; empty: as `keep` and `drop_after` say

    @property
    def all_ffn(self) -> tuple[int, ...]:
        """The feed-forward width of each layer."""
        return self.layer_ffn or (self.ffn,) * self.layers


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the logits of one variant become an answer and its probabilities; fitted offline.

    `null_threshold`: logit difference (no answer - best span) above which the answer is empty.
    `null_scale`, `null_bias`: logistic curve from that difference to P(unanswerable).
    `score_weights`: logistic weights (bias, |difference - threshold|, log share of the best span
    among the spans) to P(the returned answer is right), one row for spans and one for empty answers.
    `temperature`: of a classification, which has nothing else: softmax(logits / temperature) are the labels'
    probabilities.
    """

    null_threshold: float = 0.0
    null_scale: float = 1.0
    null_bias: float = 0.0
    score_weights: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (0.0, 0.0, 1.0),
        (0.0, 1.0, 0.0),
    )
    temperature: float | None = None  # None: it answers questions


@dataclass(frozen=True, slots=True)
class Metric:
    """Another score of a classification, such as Matthews' correlation."""

    name: str
    value: float  # -1..1


@dataclass(frozen=True, slots=True)
class Quality:
    """What a variant scored as served on named data, by the official SQuAD 2.0 rule, 0..1.

    Of a classification `exact` and `f1` are both the accuracy: the micro F1 of one label a text is the accuracy.
    """

    data: str
    sha256: str
    n: int
    exact: float
    f1: float
    f1_low: float  # 95 % interval over articles, or contexts of unknown article
    f1_high: float
    has_answer_f1: float | None  # None, here and below: the data has no such questions
    no_answer_f1: float | None
    forced_f1: float | None  # answerable questions only, an answer forced
    metrics: tuple[Metric, ...] = ()  # of a classification: more scores of the same rows


@dataclass(frozen=True, slots=True)
class Cell:
    """Latency of one variant at one length bucket and batch, ms."""

    bucket: int
    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Host:
    """The host of a latency profile or a certificate."""

    cpu: str
    flags: str  # the instruction sets that change int8 results
    cores: int
    gpu: str
    engine: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The latency of one variant on one host, one core an inference."""

    host: Host
    threads: int
    cells: tuple[Cell, ...]

    def cell(self, bucket: int, batch: int = 1) -> Cell:
        """Return the cell of this bucket, or of the next longer one that was measured."""
        same = [c for c in self.cells if c.batch == batch and c.bucket >= bucket]
        return min(same, key=attrgetter("bucket"))


@dataclass(frozen=True, slots=True)
class GoldenLogits:
    """The logits of a variant for one golden input on the host of its certificate."""

    start: tuple[float, ...]
    end: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GoldenLabelLogits:
    """The same of a classification: a logit a label."""

    logits: tuple[float, ...]  # (L,)


@dataclass(frozen=True, slots=True)
class Spread:
    """How confidence is distributed among questions of one length: see Confidence."""

    max_tokens: int  # of question and context together; longer than those of the part before
    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n_questions: int


@dataclass(frozen=True, slots=True)
class Confidence:
    """How a variant's calibrated confidence (`Answer.score`) is distributed on the certified data.

    `shares`: of answers whose confidence is at most each of `edges`, every question asked alike; true shares lie between `low` and
    `high`, those of all edges and variants of the catalog jointly at the certificates' 1 - delta.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n_contexts: int
    n_questions: int
    host: Host  # that answered
    # The same by length, the shortest first: routing sends other lengths to a variant than it was certified
    # on. Absent from early catalogs.
    by_length: tuple[Spread, ...] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """A published model: one folder of the repository; its name is Triton's model name."""

    name: str
    version: int
    sha256: str
    size_bytes: int
    parameters: int
    shape: Shape
    precision: Precision
    recipe: str
    batch_invariant: bool
    instances: int  # copies in the model server: windows answered at the same time
    decoding: Decoding
    quality: tuple[Quality, ...]
    profile: Profile
    golden: tuple[GoldenLogits | GoldenLabelLogits, ...]
    golden_tolerance: float
    confidence: Confidence | None = None  # None: published before it was measured
    task: str = QA  # or the name of a classification of the catalog

    @property
    def max_batch(self) -> int:
        """The largest batch of windows: 1 where an answer depends on the rest of its batch."""
        return MAX_BATCH if self.batch_invariant else 1

    @property
    def classifies(self) -> bool:
        """Whether it returns a logit a label, not two a token."""
        return self.task != QA


@dataclass(frozen=True, slots=True)
class Bound:
    """The floor of one method; the certificate's own floor is that of the study's method."""

    method: str
    floor: float


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the certified questions: of a kind, of a length, or of articles that no model has seen.

    Its floor holds jointly with all others of the catalog.
    """

    name: str
    n_contexts: int
    n_questions: int
    f1: float  # the sample mean, over clusters
    floor: float
    n_clusters: int = (
        0  # articles, or contexts of unknown article; 0: before floors were made by cluster
    )


@dataclass(frozen=True, slots=True)
class Check:
    """The score of a plan on questions that its floors were not made from.

    `stratum`: a stratum of the certificate, or `all`. `shift`: where the floor fails, what differs
    between this data and the certified one.
    """

    data: str
    stratum: str
    n_contexts: int
    n_questions: int
    f1: float  # the sample mean, over clusters
    f1_high: float  # upper bound on the true mean, at the certificate's confidence
    floor: float
    shift: str = ""

    @property
    def verdict(self) -> str:
        """Return `holds`, `within noise` (too few contexts to tell) or `fails`."""
        if self.f1 >= self.floor:
            return "holds"
        return "within noise" if self.f1_high >= self.floor else "fails"


@dataclass(frozen=True, slots=True)
class LossCheck:
    """The loss of a plan to the largest variant on questions that its paired certificate was not made from."""

    data: str
    n_contexts: int
    n_questions: int
    loss: float  # the sample mean, over clusters
    loss_low: float  # lower bound on the true mean, at the certificate's confidence
    certified: float

    @property
    def verdict(self) -> str:
        """Return `holds`, `within noise` (too few contexts to tell) or `fails`."""
        if self.loss <= self.certified:
            return "holds"
        return "within noise" if self.loss_low <= self.certified else "fails"


@dataclass(frozen=True, slots=True)
class ScopeLoss:
    """The certified loss of a plan in one scope of its certificate."""

    name: str
    loss: float


@dataclass(frozen=True, slots=True)
class Paired:
    """Mean F1 of the plan >= that of the variant `to` on the same questions - `loss`.

    Jointly with all floors of the catalog, at the certificate's 1 - delta. Below 0: the plan is better.
    """

    to: str  # the largest variant
    loss: float
    f1_loss: float  # the sample mean, over clusters
    checks: tuple[LossCheck, ...] = ()
    scopes: tuple[ScopeLoss, ...] = ()  # as the certificate's; `loss` is the largest


@dataclass(frozen=True, slots=True)
class Certificate:
    """Mean F1 of the plan >= `floor`, jointly with all plans of its task, at 1 - delta.

    One value is a cluster's: of an article where its title is known, of a context elsewhere. `floor` is the
    lowest of the scopes'. Of a classification F1 is the accuracy, and a cluster is a row or a group of rows.
    """

    floor: float
    delta: float
    method: str
    n_contexts: int
    n_questions: int
    f1: float  # the sample mean, over clusters
    data: str
    data_sha256: str
    model_sha256: tuple[str, ...]
    host: Host
    # Empty in the catalogs of early studies.
    bounds: tuple[Bound, ...] = ()
    strata: tuple[Stratum, ...] = ()
    checks: tuple[Check, ...] = ()
    paired: Paired | None = None
    commit: str = ""  # of the code that certified
    scopes: tuple[Stratum, ...] = ()  # all clusters; and, where there are, titled articles alone
    n_clusters: int = 0
    constant_f1: float | None = None  # of always answering "no answer", on the same clusters
    spent: float = (
        0.0  # of delta, by this look at the data; all looks at it together spend delta at most
    )
    floor_scope: FloorScope = FloorScope.LOWER  # whose floor and loss `floor` and `paired.loss` are

    def floor_of(self, stratum: str) -> float | None:
        """Return the floor of a stratum; None: it has none."""
        return next((s.floor for s in self.strata if s.name == stratum), None)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a plan answers as the largest variant does, on the questions of its certificate.

    Counts the questions that a smaller variant answered in the end, except those that both left without
    an answer. `both_answer`: the share where both give an answer;
    `same_answer`: of those, where it is the same text; every question asked alike. The floors under both rates, of all plans of the
    catalog, hold jointly at the certificate's 1 - delta.
    """

    reference: str  # the largest variant
    n_contexts: int
    n_questions: int
    both_answer: float
    both_answer_floor: float
    same_answer: float
    same_answer_floor: float
    host: Host  # that answered


@dataclass(frozen=True, slots=True)
class Plan:
    """One variant, or a cascade of variants with escalation thresholds; a plan answers a request.

    All its variants are of one task.
    """

    name: str
    variants: tuple[str, ...]
    thresholds: tuple[float, ...]  # the next variant is asked where an answer's score is below
    certificate: Certificate
    # Of a direct plan, and in the catalogs of early studies, empty.
    reach: tuple[float, ...] = ()  # expected share of the requests that each variant is asked
    agreement: Agreement | None = None  # None: the largest itself, or published before it was known

    @property
    def certified_f1(self) -> float:
        return self.certificate.floor

    @property
    def certified_loss(self) -> float | None:
        """The certified limit on its F1 loss to the largest variant; None: not certified."""
        paired = self.certificate.paired
        return None if paired is None else paired.loss
