"""The door of the gRPC front: a key before any message is read, for reflection, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from gateway.access import CALLER, Access
from gateway.errors import Forbidden, Unauthenticated
from gateway.grpc_call import help_of, status_of
from gateway.keys import Scope

OPEN = "/grpc.health.v1.Health/"  # what probes ask


class GrpcDoor(grpc.aio.ServerInterceptor):
    """Admits a call, or answers it with the status of what is wrong."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if handler_call_details.method.startswith(OPEN):
            return await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata or ()
        found = [str(value) for name, value in metadata if name == "authorization"]
        given = found[0] if len(found) == 1 else None
        try:
            CALLER.set(self._access.admit("grpc", given, Scope.ANSWER))
        except (Unauthenticated, Forbidden) as exc:
            return _refusal(exc)
        return await continuation(handler_call_details)


def _refusal(error: Unauthenticated | Forbidden) -> Any:
    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(status_of(error), str(error), help_of(error))

    return grpc.unary_unary_rpc_method_handler(refuse)
