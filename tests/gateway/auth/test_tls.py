"""TLS: both frontends speak it, new files are used without a restart, and wrong ones change nothing."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import bertier
from bertier import AsyncClient, Retries, Security
from gateway.auth import tls
from gateway.auth.reloading import LOOK_EVERY_MS
from gateway.auth.tls import CertificateError, Certificates
from gateway.observability.metrics import Metrics
from gateway.settings import Settings
from tests import live
from tests.certificates import DAY, Authority, Pair
from tests.fakes import CONTEXT, QUESTION

ONCE = Retries(attempts=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def root(authority: Authority, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    path.write_bytes(authority.pem)
    return path


class Clock:
    ms = 0.0

    def __call__(self) -> float:
        return self.ms

    def pass_by(self) -> None:
        self.ms += LOOK_EVERY_MS


async def subject(host: str, port: int, root: Path, own: tuple[Path, Path] | None = None) -> str:
    """Return the name that a gateway's certificate is of."""
    context = ssl.create_default_context(cafile=str(root))
    if own:
        context.load_cert_chain(*own)
    async with asyncio.timeout(20):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
    name = x509.load_der_x509_certificate(shown).subject.rfc4514_string()
    return name.removeprefix("CN=")


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_both_frontends_speak_tls(
    scheme: str, authority: Authority, root: Path, tmp_path: Path
) -> None:
    """The answer comes over TLS, and who does not know the authority is not fooled."""
    certificate, key = authority.sign("gateway").write(tmp_path, "gateway")
    async with live.gateway(tls_certificate=certificate, tls_key=key) as running:
        url = f"{scheme}://{running.http_url if scheme == 'https' else running.grpc_url}"
        async with AsyncClient(url, security=Security(authority=root)) as client:
            assert await client.answer(QUESTION, CONTEXT)
        for outsider in (url, url.replace("s://", "://")):
            async with AsyncClient(outsider, retries=ONCE, timeout_s=20) as client:
                with pytest.raises(bertier.ApiError):
                    await client.answer(QUESTION, CONTEXT)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_mutual_tls_wants_a_valid_certificate_of_the_authority(
    scheme: str,
    authority: Authority,
    root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One of another authority, or an ended one, is as good as none."""
    certificate, key = authority.sign("gateway").write(tmp_path, "gateway")
    known = authority.sign("caller").write(tmp_path, "known")
    foreign = Authority("another").sign("caller").write(tmp_path, "foreign")
    ended = authority.sign("caller", -2 * DAY, -DAY).write(tmp_path, "ended")
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_authority": root}
    async with live.gateway(**settings) as running:
        url = f"{scheme}://{running.http_url if scheme == 'https' else running.grpc_url}"
        friend = Security(authority=root, certificate=known[0], key=known[1])
        async with AsyncClient(url, security=friend) as client:
            assert await client.answer(QUESTION, CONTEXT)
        for outsider in (
            Security(authority=root),
            Security(authority=root, certificate=foreign[0], key=foreign[1]),
            Security(authority=root, certificate=ended[0], key=ended[1]),
        ):
            async with AsyncClient(url, security=outsider, retries=ONCE, timeout_s=20) as client:
                with pytest.raises(bertier.Unreachable, match="check that yours is set"):
                    await client.answer(QUESTION, CONTEXT)
        assert running.backend.asked == ["large"]
    if scheme == "https":  # gRPC's own library writes its reasons to stderr
        for why in ("showed no certificate", "certificate has expired", "local issuer"):
            assert caplog.text.count(why) == 1


async def test_a_renewed_certificate_is_used_for_new_connections(
    authority: Authority, root: Path, tmp_path: Path
) -> None:
    """Renewals need no restart, over HTTP or gRPC."""
    certificate, key = authority.sign("first").write(tmp_path, "gateway")
    async with live.gateway(tls_certificate=certificate, tls_key=key) as running:
        places = [running.http_url.split(":"), running.grpc_url.split(":")]
        for host, port in places:
            assert await subject(host, int(port), root) == "first"
        authority.sign("second").write(tmp_path, "gateway")
        async with asyncio.timeout(60):
            for host, port in places:
                while await subject(host, int(port), root) != "second":
                    pass


def test_a_file_that_cannot_be_used_changes_nothing(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that went wrong leaves the old certificate in use, and is logged."""
    first, clock, metrics = authority.sign("first"), Clock(), Metrics()
    certificate, key = first.write(tmp_path, "gateway")
    served = Certificates(certificate, key, None, metrics, clock)
    ended = authority.sign("late", until=timedelta(seconds=-1))
    for wrong in (Pair(b"nonsense", first.key), Pair(first.certificate, b""), ended):
        wrong.write(tmp_path, "gateway")
        clock.pass_by()
        assert served.pem().certificate == first.certificate
        assert (
            metrics.registry.get_sample_value("bertier_reload_refused", {"file": "certificate"})
            == 1
        )
    certificate.unlink()
    clock.pass_by()
    assert served.pem().certificate == first.certificate
    second = authority.sign("second")
    second.write(tmp_path, "gateway")
    clock.pass_by()
    assert served.pem().certificate == second.certificate
    assert metrics.registry.get_sample_value("bertier_reload_refused", {"file": "certificate"}) == 0
    assert "stays in use" in caplog.text


def test_a_certificate_that_begins_later_is_used_when_it_does(
    authority: Authority, tmp_path: Path
) -> None:
    """It is renewed ahead, or the clock was wrong: nobody edits the file a second time."""
    first, clock, today = authority.sign("first"), Clock(), [datetime.now(UTC)]
    certificate, key = first.write(tmp_path, "gateway")
    served = Certificates(certificate, key, None, Metrics(), clock, lambda: today[0])
    later = authority.sign("later", since=DAY)
    later.write(tmp_path, "gateway")
    clock.pass_by()
    assert served.pem().certificate == first.certificate
    today[0] += 2 * DAY
    clock.pass_by()
    assert served.pem().certificate == later.certificate


def test_the_end_of_a_certificate_in_use_is_logged_as_it_comes(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway runs longer than a certificate: once two weeks ahead, and once when it is over."""
    clock, today = Clock(), [datetime.now(UTC)]
    pair = authority.sign("x", until=100 * DAY).write(tmp_path, "gateway")
    served = Certificates(*pair, None, Metrics(), clock, lambda: today[0])
    for days, said in (
        (50, []),
        (40, ["ends on"]),
        (5, ["ends on"]),
        (10, ["ends on", "ended on"]),
    ):
        today[0] += days * DAY
        for _ in range(2):
            clock.pass_by()
            served.pem()
        assert [word for word in ("ends on", "ended on") if caplog.text.count(word) == 1] == said


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [(-2 * DAY, -DAY, "ended on .* renew"), (DAY, 2 * DAY, "begins only on")],
)
def test_a_certificate_out_of_its_time_is_refused(
    authority: Authority, tmp_path: Path, since: timedelta, until: timedelta, said: str
) -> None:
    """Callers would refuse it one by one; the gateway says it once, at the start."""
    certificate, key = authority.sign("x", since, until).write(tmp_path, "gateway")
    with pytest.raises(CertificateError, match=said) as caught:
        Certificates(certificate, key, None, Metrics())
    assert str(certificate) in str(caught.value)


def test_a_certificate_that_ends_soon_is_logged(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log warns, and the metric can be alerted on."""
    metrics = Metrics()
    pair = authority.sign("x", until=DAY).write(tmp_path, "gateway")
    Certificates(*pair, None, metrics)
    assert "renew it" in caplog.text
    ends = metrics.registry.get_sample_value("bertier_certificate_end_timestamp_seconds")
    assert (
        ends == x509.load_pem_x509_certificate(pair[0].read_bytes()).not_valid_after_utc.timestamp()
    )


def test_files_that_are_none_are_refused_by_name(authority: Authority, tmp_path: Path) -> None:
    """What is missing, of another kind, or of another pair is named."""
    certificate, key = authority.sign("a").write(tmp_path, "a")
    _, other = authority.sign("b").write(tmp_path, "b")
    none, nonsense = tmp_path / "none.pem", tmp_path / "nonsense.pem"
    nonsense.write_bytes(b"nonsense\xff\x00")
    der = tmp_path / "der.pem"
    shown_one = x509.load_pem_x509_certificate(certificate.read_bytes())
    der.write_bytes(shown_one.public_bytes(serialization.Encoding.DER))
    locked = tmp_path / "locked.key"
    own = serialization.load_pem_private_key(key.read_bytes(), None)
    password = serialization.BestAvailableEncryption(b"secret")
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked.write_bytes(own.private_bytes(*formats, password))
    ended, _ = authority.sign("late", -2 * DAY, -DAY).write(tmp_path, "ended")
    for shown, its_key, signers, said in (
        (none, key, None, f"{none}: cannot be read"),
        (tmp_path, key, None, f"{tmp_path}: cannot be read"),
        (nonsense, key, None, f"{nonsense}: no certificate"),
        (der, key, None, f"{der}: no certificate in PEM form; it is in DER form"),
        (certificate, none, None, f"{none}: cannot be read"),
        (certificate, nonsense, None, f"{nonsense}: no private key"),
        (certificate, certificate, None, f"{certificate}: no private key"),
        (certificate, locked, None, f"{locked}: the key has a password"),
        (certificate, other, None, f"{other}: is not the key of {certificate}"),
        (certificate, key, nonsense, f"{nonsense}: no certificate"),
        (certificate, key, ended, f"{ended}: no certificate in it is valid now"),
    ):
        with pytest.raises(CertificateError, match=said):
            Certificates(shown, its_key, signers, Metrics())


@pytest.mark.parametrize("given", ["tls_certificate", "tls_key", "tls_client_authority"])
def test_half_of_a_pair_is_no_tls(given: str, tmp_path: Path) -> None:
    """A forgotten key must not serve in the clear."""
    with pytest.raises(CertificateError, match="needs both"):
        tls.of(Settings.model_validate({given: tmp_path / "x.pem"}), Metrics())
