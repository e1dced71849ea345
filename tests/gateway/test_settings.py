"""Settings are refused, never guessed and never overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import settings, slo
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


STRICT = '\npolicy = "strict"\n'


def written(text: str) -> None:
    Path(settings.CONFIG_FILE).write_text(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[classes.a]\nlatency_ms = "100ms"' + STRICT,
            r"a\.latency_ms: '100ms': give a number of ms",
        ),
        ("[classes.a]\nlatency_ms = 0.25" + STRICT, r"a\.latency_ms is 0\.25, .* 1 to 60000 ms"),
        ("[classes.a]\nlatency_ms = -5" + STRICT, r"a\.latency_ms is -5, .* 1 to 60000 ms"),
        ("[classes.a]\nlatency_ms = nan" + STRICT, r"a\.latency_ms: nan .*finite"),
        (
            "[classes.a]\nlatency_ms = 100\ntimeout_ms = inf" + STRICT,
            r"a\.timeout_ms: inf .*finite",
        ),
        (
            "[classes.a]\nlatency_ms = 100\ntimeout_ms = 50" + STRICT,
            "timeout_ms is 50, .* from latency_ms",
        ),
        (
            "[classes.a]\nlatency_ms = 100\nbelow_best = 2" + STRICT,
            r"a\.below_best is 2, .* 0 to 1",
        ),
        ("[classes.a]\nlatency_s = 0.1" + STRICT, r"a\.latency_s: .* the nearest is latency_ms"),
        ('[classes."a b"]\nlatency_ms = 100' + STRICT, "'a b' is not a valid class name"),
        ("[classes.unknown]\nlatency_ms = 100" + STRICT, "'unknown' is not a valid class name"),
        ("[api_keys.me]\nqouta = 1", r"api_keys\.me\.qouta: .* the nearest is"),
        ("htp_port = 1", "htp_port: .* the nearest is http_port"),
        ('drain_ms = "10s"', "drain_ms: '10s': give a number of ms"),
        ("drain_ms = inf", "drain_ms: inf .*finite"),
        ("http_port = 80800", "http_port: 80800 .*65535"),
        ("http_port", "not TOML"),
        ('http_port = "9"', "http_port: '9': give a whole number"),
        ("http_port = 8080.0", r"http_port: 8080\.0: give a whole number"),
        ('drain_ms = "10"', "drain_ms: '10': give a number of ms"),
        ('log_texts = "yes"', "log_texts: 'yes': give true or false"),
        ("host = 127", "host: 127: give a text in quotes"),
        ('[classes.a]\nlatency_ms = "100"' + STRICT, r"a\.latency_ms: '100': give a number of ms"),
        ("[api_keys.me]\nsha256 = 1", r"api_keys\.me\.sha256: "),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_is_allowed(text: str, said: str) -> None:
    """The message names the place, what stands there, and what may."""
    written(text)
    with pytest.raises(SettingsError, match=said) as caught:
        settings.read()
    assert str(Path(settings.CONFIG_FILE).absolute()) in str(caught.value)


def test_values_of_the_right_type_are_taken_from_the_file() -> None:
    """A whole number is a number, too, and one address needs no list."""
    written(
        'drain_ms = 10\ntriton_url = "a:1,b:2"\nmodel_repository = "x"\nhost = "[::1]"\nlog_texts = true'
    )
    found = settings.read()
    assert (found.drain_ms, found.triton_url, found.log_texts) == (10.0, ("a:1", "b:2"), True)
    assert (found.model_repository, found.host) == (Path("x"), "::1")


def test_a_file_of_settings_that_is_a_folder_or_no_text_is_refused() -> None:
    """It is not overlooked: the gateway would run with the defaults, in the open."""
    file = Path(settings.CONFIG_FILE)
    file.mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.read()
    file.rmdir()
    file.write_bytes(b"\xb3")
    with pytest.raises(SettingsError, match="not TOML"):
        settings.read()


def test_classes_that_differ_in_case_only_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable's class is in lower case: it would stand beside the file's, and not change it."""
    written("[classes.Search]\nlatency_ms = 100" + STRICT)
    monkeypatch.setenv("BERTIER_CLASSES__SEARCH__LATENCY_MS", "120")
    with pytest.raises(SettingsError, match="Search and search differ in case") as caught:
        settings.read()
    assert "bertier.toml, BERTIER_CLASSES__SEARCH__LATENCY_MS" in str(caught.value)


def test_a_flag_is_named_as_one() -> None:
    """Who mistyped on the command line does not look for a file."""
    with pytest.raises(SettingsError, match=r"\(flag --http-port\)"):
        settings.read(http_port=99999)


def test_a_hash_of_a_key_is_not_repeated() -> None:
    """What stands there by mistake may be the key itself."""
    written('[api_keys.me]\nsha256 = "bt-a-secret"')
    with pytest.raises(SettingsError, match="sha256") as caught:
        settings.read()
    assert "bt-a-secret" not in str(caught.value)


def test_equal_classes_are_reported() -> None:
    """Equal classes may be intended, to count two teams separately, or be a mistake."""
    standard = slo.STANDARD_CLASSES["standard"]
    assert slo.equal_classes({**slo.STANDARD_CLASSES, "search": standard}) == [
        ("search", "standard")
    ]
    assert slo.equal_classes(slo.STANDARD_CLASSES) == []


@pytest.mark.parametrize("given", ["0", "-1", "x", "1.5", "", "true"])
def test_a_number_of_workers_that_cannot_be_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the flag or the variable, and what is allowed."""
    with pytest.raises(SettingsError, match=r"^workers: .*: give a whole number.*flag --workers"):
        settings.read(workers=given)
    monkeypatch.setenv("BERTIER_WORKERS", given)
    with pytest.raises(SettingsError, match=r"whole number of at least 1, or auto.*BERTIER_WORK"):
        settings.read()


def test_workers_come_from_flag_variable_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As all other settings do; the default is one process."""
    assert settings.read().workers == 1
    Path("bertier.toml").write_text("workers = 3")
    assert settings.read().workers == 3
    monkeypatch.setenv("BERTIER_WORKERS", "auto")
    assert settings.read().workers == "auto"
    assert settings.read(workers="2").workers == 2
    monkeypatch.delenv("BERTIER_WORKERS")
    Path("bertier.toml").write_text('workers = "3"')
    with pytest.raises(SettingsError, match=r"workers.*bertier\.toml"):
        settings.read()
