"""Authentication of the gRPC frontend: TLS, and the API key before any message is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from gateway.api_keys import Scope
from gateway.auth.access import CALLER, Access
from gateway.auth.tls import Certificates, Pem
from gateway.errors import Forbidden, Unauthenticated
from gateway.frontends.grpc.call import help_of, status_of

OPEN = "/grpc.health.v1.Health/"  # for probes


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Admits a call, or ends it with the status of the error."""

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


def credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return credentials whose connections each use the files of when they are opened."""
    served = certificates.version

    def fetch() -> Any:
        nonlocal served
        pem = certificates.pem()
        if certificates.version == served:
            return None  # unchanged
        served = certificates.version
        return _configuration(pem)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(certificates.pem()), fetch, require_client_authentication=certificates.mutual
    )


def _configuration(pem: Pem) -> Any:
    pairs = [(pem.key, pem.certificate)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=pem.authority)


def _refusal(error: Unauthenticated | Forbidden) -> Any:
    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(status_of(error), str(error), help_of(error))

    return grpc.stream_stream_rpc_method_handler(refuse)  # the kind that reads no message first
