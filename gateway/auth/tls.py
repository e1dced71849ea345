"""The TLS certificate of the gateway and the authority of client certificates; read again on change.

Knows no protocol: each frontend builds what its server needs.
"""

from __future__ import annotations

import logging
import math
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.auth.reloading import Reloading
from gateway.errors import BertierError
from gateway.observability.metrics import Metrics
from gateway.settings import Settings

log = logging.getLogger(__name__)

ENDS_SOON = timedelta(days=14)
SAID_EVERY_MS = 60_000.0  # why a caller's handshake failed: each reason at most so often
# Reasons of OpenSSL that an operator can do something about.
REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "HTTP_REQUEST": "it spoke plain HTTP",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS 1.2 or newer",
}


class CertificateError(BertierError):
    """A file of TLS that cannot be used; the message names it and what is wrong."""


@dataclass(frozen=True, slots=True)
class Pem:
    """What the files hold; `authority` None: callers need no certificate."""

    certificate: bytes
    key: bytes
    authority: bytes | None
    ends: datetime


class Certificates:
    """The pair in use, and how HTTPS is spoken with it. Any thread may ask."""

    def __init__(
        self,
        certificate: Path,
        key: Path,
        authority: Path | None,
        metrics: Metrics,
        clock: Callable[[], float] = lambda: time.monotonic() * 1e3,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`clock`: ms, `now`: what certificates are valid by. Raises: CertificateError."""
        self._paths = (certificate, key, *([authority] if authority else []))
        self._authority = authority
        self._metrics = metrics
        self._now = now
        self._lock = threading.Lock()
        self._files = Reloading(self._paths, clock)
        self._warned: str | None = None
        self._clock = clock
        self._said_ms: dict[str, float] = {}
        self.version = 0
        self._use(self._read())

    @property
    def mutual(self) -> bool:
        return self._authority is not None

    def pem(self) -> Pem:
        """Return the files of now; of before, where they cannot be used."""
        self._look()
        return self._pem

    def context(self) -> ssl.SSLContext:
        """Return a context whose connections each use the files of when they are opened."""
        outer = self._context_of(self._pem)

        def choose(connection: Any, _name: str | None, _outer: ssl.SSLContext) -> None:
            self._look()
            connection.context = self._context

        outer.sni_callback = choose
        outer.sslobject_class = _telling(self._tell)
        return outer

    def _tell(self, why: str) -> None:
        """Log why the TLS handshake of a caller failed; neither side learns it from the protocol."""
        now_ms = self._clock()
        if now_ms - self._said_ms.get(why, -math.inf) >= SAID_EVERY_MS:
            self._said_ms[why] = now_ms
            log.warning("a caller could not connect over TLS: %s", why)

    def _look(self) -> None:
        with self._lock:
            if self._files.is_due():
                self._reload()
            self._warn()

    def _reload(self) -> None:
        try:
            self._use(self._read())
        except CertificateError as exc:
            if self._files.failed(str(exc)):
                log.error("%s; the previous certificate stays in use until this is fixed", exc)
            self._metrics.note_reload("certificate", loaded=False)
        else:
            self._files.worked()
            log.info("%s: read again, valid until %s", self._paths[0], self._pem.ends)
            self._metrics.note_reload("certificate", loaded=True)

    def _use(self, pem: Pem) -> None:
        self._context = self._context_of(pem)
        self._pem = pem
        self.version += 1
        self._metrics.certificate_ends.set(pem.ends.timestamp())
        self._warn()

    def _warn(self) -> None:
        """Say once that the certificate in use ends soon, and once that it has ended."""
        left, ends = self._pem.ends - self._now(), self._pem.ends
        if left >= ENDS_SOON:
            return
        state = f"ended on {ends}: callers refuse it" if left <= timedelta() else f"ends on {ends}"
        if state != self._warned:
            self._warned = state
            log.warning("%s: %s; renew it", self._paths[0], state)

    def _read(self) -> Pem:
        certificate, key, *authority = (_bytes_of(path) for path in self._paths)
        (first, *_) = _certificates(self._paths[0], certificate)
        if self._now() >= first.not_valid_after_utc:
            raise CertificateError(
                f"{self._paths[0]}: ended on {first.not_valid_after_utc}; renew it"
            )
        if self._now() < first.not_valid_before_utc:
            raise CertificateError(
                f"{self._paths[0]}: begins only on {first.not_valid_before_utc}; use one that is valid now"
            )
        self._check_key(first, key)
        if authority:
            self._check_authority(_certificates(self._paths[2], authority[0]))
        return Pem(certificate, key, authority[0] if authority else None, first.not_valid_after_utc)

    def _check_key(self, certificate: x509.Certificate, key: bytes) -> None:
        """Raises: CertificateError where it is no key without a password, or another one's."""
        path = self._paths[1]
        try:
            own = load_pem_private_key(key, None)
        except TypeError as exc:
            raise CertificateError(f"{path}: the key has a password; store it without one") from exc
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise CertificateError(f"{path}: no private key in PEM form") from exc
        if own.public_key() != certificate.public_key():
            raise CertificateError(f"{path}: is not the key of {self._paths[0]}; name its own")

    def _check_authority(self, signers: list[x509.Certificate]) -> None:
        """Raises: CertificateError where none is valid now: every caller would be refused."""
        now = self._now()
        if not any(s.not_valid_before_utc <= now < s.not_valid_after_utc for s in signers):
            ends = max(signer.not_valid_after_utc for signer in signers)
            raise CertificateError(
                f"{self._authority}: no certificate in it is valid now (the last ends on {ends}),"
                " so no caller's would be; name the authority's new one"
            )

    def _context_of(self, pem: Pem) -> ssl.SSLContext:
        """Return a context of these files. Raises: CertificateError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._paths[0], self._paths[1], _no_password)
        except (OSError, ssl.SSLError) as exc:
            why = getattr(exc, "reason", None) or exc
            raise CertificateError(
                f"{self._paths[0]}, {self._paths[1]}: no pair of certificate and key ({why})"
            ) from exc
        if pem.authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=pem.authority.decode("ascii", "ignore"))
        return context


def of(settings: Settings, metrics: Metrics) -> Certificates | None:
    """Return what the settings name; None: no TLS. Raises: CertificateError."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None and settings.tls_client_authority is None:
        return None
    if certificate is None or key is None:
        raise CertificateError("tls_certificate, tls_key: TLS needs both; give both, or neither")
    return Certificates(certificate, key, settings.tls_client_authority, metrics)


def _telling(tell: Callable[[str], None]) -> type[ssl.SSLObject]:
    """Return an SSLObject class that reports why a handshake failed: asyncio discards the reason."""

    class Telling(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except ssl.SSLCertVerificationError as exc:
                tell(f"{exc.verify_message} (its certificate)")
                raise
            except ssl.SSLError as exc:
                if exc.reason in REASONS:
                    tell(REASONS[exc.reason])
                raise

    return Telling


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CertificateError(f"{path}: cannot be read ({exc.strerror})") from exc


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file. Raises: CertificateError."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        other = "; it is in DER form: openssl x509 -inform der" if pem[:2] == b"\x30\x82" else ""
        raise CertificateError(f"{path}: no certificate in PEM form{other}") from exc


def _no_password() -> str:
    raise OSError("the key has a password; store it without one")
