"""A client of the gateway, for HTTP and gRPC: `bertier.Client`, `bertier.AsyncClient`.

Imports nothing that serves, trains or measures.
"""

from bertier.answers import Alternative, Answer, Outcome, PlanOption, PlanReport
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
from bertier.questions import Ask
from bertier.retrying import Retries
from bertier.security import Security
from bertier.slo import SloArguments

__all__ = [
    "Alternative",
    "Answer",
    "ApiError",
    "Ask",
    "AsyncClient",
    "Client",
    "DeadlineExceeded",
    "Denied",
    "Infeasible",
    "InvalidRequest",
    "Outcome",
    "Overloaded",
    "PlanOption",
    "PlanReport",
    "Retries",
    "Security",
    "ServerFailed",
    "SloArguments",
    "Unavailable",
    "Unreachable",
]
