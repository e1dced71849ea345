"""A client of the gateway, for HTTP and gRPC: `bertier.Client`, `bertier.AsyncClient`.

Imports nothing that serves, trains or measures.
"""

from bertier.answers import (
    Alternative,
    Answer,
    Classification,
    Cost,
    LabelScore,
    PassageRef,
    PlanOption,
    PlanReport,
    Scored,
    Sentence,
    SloOutcome,
)
from bertier.client import AsyncClient, Client
from bertier.errors import (
    ApiError,
    DeadlineExceeded,
    Denied,
    Infeasible,
    InvalidRequest,
    Overloaded,
    ServerFailed,
    Unavailable,
    Unreachable,
)
from bertier.questions import AnswerArguments, Ask, Passage
from bertier.retrying import Retries
from bertier.security import Security
from bertier.slo import SloArguments

__all__ = [
    "Alternative",
    "Answer",
    "AnswerArguments",
    "ApiError",
    "Ask",
    "AsyncClient",
    "Classification",
    "Client",
    "Cost",
    "DeadlineExceeded",
    "Denied",
    "Infeasible",
    "InvalidRequest",
    "LabelScore",
    "Overloaded",
    "Passage",
    "PassageRef",
    "PlanOption",
    "PlanReport",
    "Retries",
    "Scored",
    "Security",
    "Sentence",
    "ServerFailed",
    "SloArguments",
    "SloOutcome",
    "Unavailable",
    "Unreachable",
]
