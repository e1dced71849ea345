from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassifyRequest(_message.Message):
    __slots__ = ("text", "text_pair", "task", "id", "slo")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_PAIR_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    text: str
    text_pair: str
    task: str
    id: str
    slo: SloRequest
    def __init__(self, text: _Optional[str] = ..., text_pair: _Optional[str] = ..., task: _Optional[str] = ..., id: _Optional[str] = ..., slo: _Optional[_Union[SloRequest, _Mapping]] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("id", "task", "label", "score", "scores", "plan", "variant", "slo", "timings", "explain", "cost", "age_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    label: str
    score: float
    scores: _containers.RepeatedCompositeFieldContainer[LabelScore]
    plan: str
    variant: str
    slo: SloResult
    timings: Timings
    explain: Explanation
    cost: Cost
    age_ms: float
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., label: _Optional[str] = ..., score: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[LabelScore, _Mapping]]] = ..., plan: _Optional[str] = ..., variant: _Optional[str] = ..., slo: _Optional[_Union[SloResult, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., explain: _Optional[_Union[Explanation, _Mapping]] = ..., cost: _Optional[_Union[Cost, _Mapping]] = ..., age_ms: _Optional[float] = ...) -> None: ...

class LabelScore(_message.Message):
    __slots__ = ("label", "probability")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    label: str
    probability: float
    def __init__(self, label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("request_id", "id", "answers", "right")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    id: str
    answers: RightAnswers
    right: bool
    def __init__(self, request_id: _Optional[str] = ..., id: _Optional[str] = ..., answers: _Optional[_Union[RightAnswers, _Mapping]] = ..., right: _Optional[bool] = ...) -> None: ...

class RightAnswers(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("plan", "variant", "f1", "exact")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    F1_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    plan: str
    variant: str
    f1: float
    exact: float
    def __init__(self, plan: _Optional[str] = ..., variant: _Optional[str] = ..., f1: _Optional[float] = ..., exact: _Optional[float] = ...) -> None: ...

class AnswerRequest(_message.Message):
    __slots__ = ("question", "context", "id", "top_k", "slo", "contexts", "max_answer_tokens", "min_score", "max_no_answer_probability", "offset_unit", "sentence")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    MAX_NO_ANSWER_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_UNIT_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    question: str
    context: str
    id: str
    top_k: int
    slo: SloRequest
    contexts: _containers.RepeatedCompositeFieldContainer[Passage]
    max_answer_tokens: int
    min_score: float
    max_no_answer_probability: float
    offset_unit: str
    sentence: bool
    def __init__(self, question: _Optional[str] = ..., context: _Optional[str] = ..., id: _Optional[str] = ..., top_k: _Optional[int] = ..., slo: _Optional[_Union[SloRequest, _Mapping]] = ..., contexts: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ..., max_answer_tokens: _Optional[int] = ..., min_score: _Optional[float] = ..., max_no_answer_probability: _Optional[float] = ..., offset_unit: _Optional[str] = ..., sentence: _Optional[bool] = ...) -> None: ...

class Passage(_message.Message):
    __slots__ = ("context", "id")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    context: str
    id: str
    def __init__(self, context: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class AnswerManyRequest(_message.Message):
    __slots__ = ("questions", "context", "contexts")
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    questions: _containers.RepeatedCompositeFieldContainer[AnswerRequest]
    context: str
    contexts: _containers.RepeatedCompositeFieldContainer[Passage]
    def __init__(self, questions: _Optional[_Iterable[_Union[AnswerRequest, _Mapping]]] = ..., context: _Optional[str] = ..., contexts: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ...) -> None: ...

class SloRequest(_message.Message):
    __slots__ = ("latency_ms", "min_f1", "slo_class", "policy", "priority", "variant", "explain", "max_f1_loss", "min_answerable_f1")
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_F1_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    MAX_F1_LOSS_FIELD_NUMBER: _ClassVar[int]
    MIN_ANSWERABLE_F1_FIELD_NUMBER: _ClassVar[int]
    latency_ms: float
    min_f1: float
    slo_class: str
    policy: str
    priority: int
    variant: str
    explain: bool
    max_f1_loss: float
    min_answerable_f1: float
    def __init__(self, latency_ms: _Optional[float] = ..., min_f1: _Optional[float] = ..., slo_class: _Optional[str] = ..., policy: _Optional[str] = ..., priority: _Optional[int] = ..., variant: _Optional[str] = ..., explain: _Optional[bool] = ..., max_f1_loss: _Optional[float] = ..., min_answerable_f1: _Optional[float] = ...) -> None: ...

class AnswerResponse(_message.Message):
    __slots__ = ("id", "answer", "start", "end", "score", "no_answer_probability", "alternatives", "plan", "variant", "slo", "timings", "explain", "passage", "sentence", "cost", "age_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NO_ANSWER_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    answer: str
    start: int
    end: int
    score: float
    no_answer_probability: float
    alternatives: _containers.RepeatedCompositeFieldContainer[Alternative]
    plan: str
    variant: str
    slo: SloResult
    timings: Timings
    explain: Explanation
    passage: PassageRef
    sentence: Sentence
    cost: Cost
    age_ms: float
    def __init__(self, id: _Optional[str] = ..., answer: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., score: _Optional[float] = ..., no_answer_probability: _Optional[float] = ..., alternatives: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., plan: _Optional[str] = ..., variant: _Optional[str] = ..., slo: _Optional[_Union[SloResult, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., explain: _Optional[_Union[Explanation, _Mapping]] = ..., passage: _Optional[_Union[PassageRef, _Mapping]] = ..., sentence: _Optional[_Union[Sentence, _Mapping]] = ..., cost: _Optional[_Union[Cost, _Mapping]] = ..., age_ms: _Optional[float] = ...) -> None: ...

class PassageRef(_message.Message):
    __slots__ = ("index", "id")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ...) -> None: ...

class Sentence(_message.Message):
    __slots__ = ("text", "start", "end")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    text: str
    start: int
    end: int
    def __init__(self, text: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Cost(_message.Message):
    __slots__ = ("compute_ms", "largest_variant", "largest_compute_ms", "saved_ms")
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_VARIANT_FIELD_NUMBER: _ClassVar[int]
    LARGEST_COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    SAVED_MS_FIELD_NUMBER: _ClassVar[int]
    compute_ms: float
    largest_variant: str
    largest_compute_ms: float
    saved_ms: float
    def __init__(self, compute_ms: _Optional[float] = ..., largest_variant: _Optional[str] = ..., largest_compute_ms: _Optional[float] = ..., saved_ms: _Optional[float] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("answer", "start", "end", "probability", "passage")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    answer: str
    start: int
    end: int
    probability: float
    passage: PassageRef
    def __init__(self, answer: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., probability: _Optional[float] = ..., passage: _Optional[_Union[PassageRef, _Mapping]] = ...) -> None: ...

class SloResult(_message.Message):
    __slots__ = ("latency_ms", "min_f1", "slo_class", "policy", "timeout_ms", "certified_f1", "predicted_ms", "met", "max_f1_loss", "certified_f1_loss", "min_answerable_f1", "certified_answerable_f1")
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_F1_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_F1_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    MAX_F1_LOSS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_F1_LOSS_FIELD_NUMBER: _ClassVar[int]
    MIN_ANSWERABLE_F1_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_ANSWERABLE_F1_FIELD_NUMBER: _ClassVar[int]
    latency_ms: float
    min_f1: float
    slo_class: str
    policy: str
    timeout_ms: float
    certified_f1: float
    predicted_ms: float
    met: str
    max_f1_loss: float
    certified_f1_loss: float
    min_answerable_f1: float
    certified_answerable_f1: float
    def __init__(self, latency_ms: _Optional[float] = ..., min_f1: _Optional[float] = ..., slo_class: _Optional[str] = ..., policy: _Optional[str] = ..., timeout_ms: _Optional[float] = ..., certified_f1: _Optional[float] = ..., predicted_ms: _Optional[float] = ..., met: _Optional[str] = ..., max_f1_loss: _Optional[float] = ..., certified_f1_loss: _Optional[float] = ..., min_answerable_f1: _Optional[float] = ..., certified_answerable_f1: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("tokenize_ms", "route_ms", "queue_ms", "infer_ms", "decode_ms", "total_ms")
    TOKENIZE_MS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFER_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    tokenize_ms: float
    route_ms: float
    queue_ms: float
    infer_ms: float
    decode_ms: float
    total_ms: float
    def __init__(self, tokenize_ms: _Optional[float] = ..., route_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., infer_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("reason", "options", "quantile", "spent_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_FIELD_NUMBER: _ClassVar[int]
    SPENT_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    options: _containers.RepeatedCompositeFieldContainer[PlanOption]
    quantile: float
    spent_ms: float
    def __init__(self, reason: _Optional[str] = ..., options: _Optional[_Iterable[_Union[PlanOption, _Mapping]]] = ..., quantile: _Optional[float] = ..., spent_ms: _Optional[float] = ...) -> None: ...

class PlanOption(_message.Message):
    __slots__ = ("plan", "certified_f1", "idle_ms", "predicted_ms", "cost_ms", "trust", "chosen", "rejection_reasons", "certified_f1_loss", "p50_ms", "p95_ms", "p99_ms", "wait_ms", "certified_answerable_f1", "floor_scope")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_F1_FIELD_NUMBER: _ClassVar[int]
    IDLE_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    COST_MS_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTION_REASONS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_F1_LOSS_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P95_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_ANSWERABLE_F1_FIELD_NUMBER: _ClassVar[int]
    FLOOR_SCOPE_FIELD_NUMBER: _ClassVar[int]
    plan: str
    certified_f1: float
    idle_ms: float
    predicted_ms: float
    cost_ms: float
    trust: str
    chosen: bool
    rejection_reasons: _containers.RepeatedScalarFieldContainer[str]
    certified_f1_loss: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    wait_ms: float
    certified_answerable_f1: float
    floor_scope: str
    def __init__(self, plan: _Optional[str] = ..., certified_f1: _Optional[float] = ..., idle_ms: _Optional[float] = ..., predicted_ms: _Optional[float] = ..., cost_ms: _Optional[float] = ..., trust: _Optional[str] = ..., chosen: _Optional[bool] = ..., rejection_reasons: _Optional[_Iterable[str]] = ..., certified_f1_loss: _Optional[float] = ..., p50_ms: _Optional[float] = ..., p95_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ..., wait_ms: _Optional[float] = ..., certified_answerable_f1: _Optional[float] = ..., floor_scope: _Optional[str] = ...) -> None: ...

class AnswerItem(_message.Message):
    __slots__ = ("id", "answer", "failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    answer: AnswerResponse
    failure: Failure
    def __init__(self, id: _Optional[str] = ..., answer: _Optional[_Union[AnswerResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("type", "code", "detail", "retry_after_ms")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    type: str
    code: str
    detail: str
    retry_after_ms: float
    def __init__(self, type: _Optional[str] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ..., retry_after_ms: _Optional[float] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("question", "context", "n_tokens", "slo", "text", "text_pair", "task")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_PAIR_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    question: str
    context: str
    n_tokens: int
    slo: SloRequest
    text: str
    text_pair: str
    task: str
    def __init__(self, question: _Optional[str] = ..., context: _Optional[str] = ..., n_tokens: _Optional[int] = ..., slo: _Optional[_Union[SloRequest, _Mapping]] = ..., text: _Optional[str] = ..., text_pair: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("feasible", "plan", "reason", "violations", "n_tokens", "n_windows", "options", "nearest", "latency_ms", "min_f1", "slo_class", "policy", "timeout_ms", "max_f1_loss", "min_answerable_f1")
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_F1_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_F1_LOSS_FIELD_NUMBER: _ClassVar[int]
    MIN_ANSWERABLE_F1_FIELD_NUMBER: _ClassVar[int]
    feasible: bool
    plan: str
    reason: str
    violations: _containers.RepeatedScalarFieldContainer[str]
    n_tokens: int
    n_windows: int
    options: _containers.RepeatedCompositeFieldContainer[PlanOption]
    nearest: _containers.RepeatedCompositeFieldContainer[PlanOption]
    latency_ms: float
    min_f1: float
    slo_class: str
    policy: str
    timeout_ms: float
    max_f1_loss: float
    min_answerable_f1: float
    def __init__(self, feasible: _Optional[bool] = ..., plan: _Optional[str] = ..., reason: _Optional[str] = ..., violations: _Optional[_Iterable[str]] = ..., n_tokens: _Optional[int] = ..., n_windows: _Optional[int] = ..., options: _Optional[_Iterable[_Union[PlanOption, _Mapping]]] = ..., nearest: _Optional[_Iterable[_Union[PlanOption, _Mapping]]] = ..., latency_ms: _Optional[float] = ..., min_f1: _Optional[float] = ..., slo_class: _Optional[str] = ..., policy: _Optional[str] = ..., timeout_ms: _Optional[float] = ..., max_f1_loss: _Optional[float] = ..., min_answerable_f1: _Optional[float] = ...) -> None: ...
