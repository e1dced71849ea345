"""Settings are refused, never guessed and never overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import settings
from gateway.settings import SettingsError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory may hold a bertier.toml of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BERTIER_HTP_PORT", "BERTIER_HTTP_PORT"),
        ("BERTIER_MODEL_REPO", "BERTIER_MODEL_REPOSITORY"),
        ("bertier_loglevel", "BERTIER_LOG_LEVEL"),
        ("BERTIER_HTTP_PORT__X", "BERTIER_HTTP_PORT"),
        ("BERTIER_CLASS__SEARCH__LATENCY_MS", "BERTIER_CLASSES"),
    ],
)
def test_a_misspelled_variable_is_refused_with_the_nearest_name(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the gateway runs with the default, and nobody knows."""
    monkeypatch.setenv(name, "9080")
    with pytest.raises(SettingsError, match=f"^{name}: .*{nearest}$"):
        settings.read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BERTIER_PORT", "tcp://10.0.0.7:8080"),
        ("BERTIER_SERVICE_HOST", "10.0.0.7"),
        ("BERTIER_SERVICE_PORT", "8080"),
        ("BERTIER_SERVICE_PORT_HTTP", "8080"),
        ("BERTIER_PORT_8080_TCP", "tcp://10.0.0.7:8080"),
        ("BERTIER_PORT_8080_TCP_ADDR", "10.0.0.7"),
        ("BERTIER_CANARY_PORT_8080_TCP_PROTO", "tcp"),
        ("BERTIER_CANARY_SERVICE_HOST", "10.0.0.8"),
        ("BERTIERS_PORT", "1"),
        ("PATH_OF_BERTIER_", "x"),
    ],
)
def test_what_kubernetes_sets_beside_a_service_is_no_misspelling(name: str, value: str) -> None:
    """A service called bertier must not end its own pods."""
    settings.check_names({name: value})


def test_variables_set_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In either case, and inside a class."""
    for name, value in (
        ("BERTIER_HTTP_PORT", "9080"),
        ("bertier_grpc_port", "9081"),
        ("BERTIER_CLASSES__SEARCH__LATENCY_MS", "120"),
        ("BERTIER_CLASSES__SEARCH__POLICY", "strict"),
    ):
        monkeypatch.setenv(name, value)
    found = settings.read()
    assert (found.http_port, found.grpc_port) == (9080, 9081)
    assert found.classes["search"].latency_ms == 120


def test_a_misspelled_field_of_a_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable as it is written."""
    monkeypatch.setenv("BERTIER_CLASSES__STANDARD__LATENCY", "120")
    with pytest.raises(SettingsError, match="BERTIER_CLASSES__STANDARD__LATENCY"):
        settings.read()
