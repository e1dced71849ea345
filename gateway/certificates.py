"""The gateway's certificate for TLS, and whose certificates callers must show; read again on change.

Knows no protocol: the fronts make of it what theirs needs.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from gateway.errors import BertierError
from gateway.metrics import Metrics
from gateway.settings import Settings

log = logging.getLogger(__name__)

LOOK_EVERY_MS = 1_000.0
ENDS_SOON = timedelta(days=14)


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises: CertificateError."""
        self._paths = (certificate, key, *([authority] if authority else []))
        self._authority = authority
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_ms = clock() * 1e3
        self._stamp = _stamp_of(self._paths)
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
        return outer

    def _look(self) -> None:
        with self._lock:
            now_ms = self._clock() * 1e3
            if now_ms - self._looked_ms < LOOK_EVERY_MS:
                return
            self._looked_ms = now_ms
            stamp = _stamp_of(self._paths)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._reload()

    def _reload(self) -> None:
        try:
            self._use(self._read())
        except CertificateError as exc:
            log.error("%s; the certificate of before serves on until it is mended", exc)
            self._metrics.note_reload("certificate", loaded=False)
        else:
            log.info("%s: read again, valid until %s", self._paths[0], self._pem.ends)
            self._metrics.note_reload("certificate", loaded=True)

    def _use(self, pem: Pem) -> None:
        self._context = self._context_of(pem)
        self._pem = pem
        self.version += 1
        self._metrics.certificate_ends.set(pem.ends.timestamp())
        if pem.ends - datetime.now(UTC) < ENDS_SOON:
            log.warning("%s: ends on %s; renew it", self._paths[0], pem.ends)

    def _read(self) -> Pem:
        certificate, key, *authority = (_bytes_of(path) for path in self._paths)
        try:
            first = x509.load_pem_x509_certificate(certificate)
        except ValueError as exc:
            raise CertificateError(f"{self._paths[0]}: no certificate in PEM form") from exc
        now = datetime.now(UTC)
        if first.not_valid_after_utc <= now:
            raise CertificateError(
                f"{self._paths[0]}: ended on {first.not_valid_after_utc}; renew it"
            )
        if first.not_valid_before_utc > now:
            raise CertificateError(f"{self._paths[0]}: begins only on {first.not_valid_before_utc}")
        return Pem(certificate, key, authority[0] if authority else None, first.not_valid_after_utc)

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
            try:
                context.load_verify_locations(cadata=pem.authority.decode("ascii"))
            except (ValueError, ssl.SSLError) as exc:
                raise CertificateError(f"{self._authority}: no certificates in PEM form") from exc
        return context


def of(settings: Settings, metrics: Metrics) -> Certificates | None:
    """Return what the settings name; None: no TLS. Raises: CertificateError."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None and settings.tls_client_authority is None:
        return None
    if certificate is None or key is None:
        raise CertificateError("tls_certificate, tls_key: TLS needs both; give both, or neither")
    return Certificates(certificate, key, settings.tls_client_authority, metrics)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CertificateError(f"{path}: cannot be read ({exc.strerror})") from exc


def _stamp_of(paths: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    """Return what changes when one of the files does; one that is not there counts as changed."""
    stamps = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            stamps.append((0, 0))
        else:
            stamps.append((found.st_mtime_ns, found.st_ino))
    return tuple(stamps)


def _no_password() -> str:
    raise OSError("the key has a password; store it without one")
