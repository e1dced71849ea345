"""The API key and the TLS certificates of the client."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class Security:
    """Files are PEM; `certificate` and `key` go together, for mutual TLS."""

    api_key: str | None = None
    authority: Path | str | None = (
        None  # the authority of the gateway's certificate; None: the system's
    )
    certificate: Path | str | None = None
    key: Path | str | None = None

    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def context(self) -> ssl.SSLContext:
        """Return how HTTPS is spoken. Raises: OSError for a file that cannot be read."""
        context = ssl.create_default_context(cafile=_text(self.authority))
        if self.certificate is not None:
            context.load_cert_chain(str(self.certificate), _text(self.key))
        return context

    def credentials(self) -> grpc.ChannelCredentials:
        """Return how gRPC over TLS is spoken. Raises: OSError for a file that cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_bytes(self.authority),
            private_key=_bytes(self.key),
            certificate_chain=_bytes(self.certificate),
        )


def _text(path: Path | str | None) -> str | None:
    return None if path is None else str(path)


def _bytes(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
