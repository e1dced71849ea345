"""All settings: from `bertier.toml`, overridden by BERTIER_* variables, then by flags. Read once, frozen."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableSettings

from gateway import settings_errors, slo
from gateway.api_keys import ApiKey
from gateway.catalog.schema import FloorScope
from gateway.errors import BertierError
from gateway.settings_errors import NESTED, PREFIX
from gateway.slo import STANDARD_CLASSES, SloClass

CONFIG_FILE = "bertier.toml"
MAX_PASSAGES = 10_000  # that any setting allows: bodies are checked up to it, before settings count
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[^\s:/,\[\]A-Z]+)(:\d{1,5})?")
_PREFIX_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+/?")
_NUMBER = re.compile(r"0*[1-9]\d{0,3}")
_URL = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/,\[\]]+):\d{1,5}")


class SettingsError(BertierError):
    """A setting that cannot be used; the message names it."""


class Settings(BaseSettings):
    """One frozen object for the whole program; `make settings` writes its table into the docs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        toml_file=CONFIG_FILE,
    )

    model_repository: Path = Field(
        Path("model_repository"), description="folder with `catalog.json`, `tokenizer.json`, models"
    )
    host: str = Field("127.0.0.1", description="address that HTTP and gRPC listen on")
    http_port: int = Field(8080, ge=0, le=65535, description="0: any free port")
    grpc_port: int = Field(8081, ge=0, le=65535, description="0: any free port")
    uds: Path | None = Field(
        None, description="Unix socket that HTTP listens on, instead of `host` and `http_port`"
    )
    root_path: str = Field(
        "",
        description="path under which a proxy offers the gateway, e.g. `/qa`; requests are answered with and"
        " without it",
    )

    workers: int | Literal["auto"] = Field(
        1,
        description="processes that answer; `auto`: one for each usable core ([more](../how-to/size-a-deployment.md#workers))",
    )

    max_connections: int = Field(
        4_096,
        gt=0,
        description="connections of each protocol at a time ([below](#connections))",
    )
    probe_connections: int = Field(
        32, ge=0, description="additional HTTP connections, only for `/healthz` and `/readyz`"
    )
    head_timeout_ms: float = Field(
        10_000,
        gt=0,
        description="time to receive the request line and headers, and for a TLS or HTTP/2 handshake",
    )
    idle_timeout_ms: float = Field(
        75_000,
        gt=0,
        description="until an HTTP connection without a request, or whose caller reads no answer, is closed",
    )
    max_head_bytes: int = Field(
        64 << 10,
        ge=1 << 10,
        description="of request line and headers, or of a gRPC call's metadata",
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins whose pages may call the gateway, separated by commas or a list in the file"
        " ([more](api.md#compression-proxies-browsers))",
    )

    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="separate port for `/metrics`, `/healthz` and `/readyz`, without TLS and keys; then"
        " `http_port` has no `/metrics`",
    )

    metrics_host: str = Field(
        "127.0.0.1", description="address that `metrics_port` listens on, whatever `host` is"
    )

    playground: bool = Field(
        default=True,
        description="whether `/`, `/live` and `/docs` are [pages for a browser](../how-to/playground.md)",
    )

    backend: Literal["auto", "triton", "embedded"] = Field(
        "auto", description="where the models run ([below](#where-the-models-run))"
    )
    triton_url: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="`host:port` of a running Triton's gRPC, or [several](#several-model-servers)",
    )
    triton_cores: float | None = Field(
        None,
        gt=0,
        description="cores of each Triton at `triton_url`; none: as many as the gateway may run on",
    )
    triton_tls_authority: Path | None = Field(
        None,
        description="PEM file of the authorities that sign the certificates of `triton_url`; set: TLS is used"
        " ([more](security.md#towards-triton))",
    )
    triton_tls_certificate: Path | None = Field(
        None, description="PEM file: the certificate that the gateway shows to Triton"
    )
    triton_tls_key: Path | None = Field(None, description="PEM file of its key, no password")
    triton_http_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="of the Triton started here; none: its HTTP is off",
    )
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="of the Triton started here")
    triton_metrics_port: int = Field(8002, ge=1, le=65535, description="of the Triton started here")
    triton_start_timeout_ms: float = Field(
        120_000, gt=0, description="time for a Triton started here to be ready"
    )

    max_context_chars: int = Field(100_000, gt=0, description="of one context")
    max_question_chars: int = Field(2_000, gt=0, description="of one question")
    max_body_bytes: int = Field(
        2 << 20, gt=0, description="of one question, one line of NDJSON, one gRPC question"
    )
    max_batch_bytes: int = Field(
        32 << 20,
        gt=0,
        description="of one JSON list, one Open Inference request, any gRPC message, NDJSON read ahead",
    )
    body_timeout_ms: float = Field(
        10_000,
        gt=0,
        description="time to receive an HTTP body, except NDJSON",
    )
    max_top_k: int = Field(20, gt=0, description="alternatives of one answer")
    max_infer_items: int = Field(1_024, gt=0, description="questions in one Open Inference request")
    max_concurrent_items: int = Field(
        8, gt=0, description="items of one list or stream processed at once"
    )

    max_passages: int = Field(
        100,
        gt=0,
        le=MAX_PASSAGES,
        description="passages of one question; together at most `max_context_chars`",
    )
    cache_bytes: int = Field(
        0,
        ge=0,
        description="memory of the response cache; 0: off"
        " ([more](../how-to/ask.md#answers-kept-for-the-same-request))",
    )
    cache_ttl_ms: float = Field(60_000, gt=0, description="how long an answer is cached")

    others_poll_ms: float = Field(
        1_000,
        ge=0,
        description="between polls of `triton_url` for the load of other gateways; 0: never"
        " ([below](#several-gateways))",
    )
    unload_after_ms: float = Field(
        600_000,
        ge=0,
        description="until a variant that no gateway has used is unloaded from Triton; 0: at once"
        " ([below](#several-gateways))",
    )
    max_in_flight: int = Field(
        1_024,
        gt=0,
        description="questions that wait or are being answered; more are refused before they are read",
    )

    retry_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the requests that may be retried with another variant when one fails"
        " ([below](#variants-that-fail))",
    )

    shadow_share: float = Field(
        0.005,
        ge=0,
        le=1,
        description="share of routed requests that the largest variant also answers; 0: none"
        " ([below](#keeping-certificates-true))",
    )
    shadow_delta: float = Field(
        0.05, gt=0, lt=1, description="probability of ever reporting a true certificate as broken"
    )
    shadow_tolerance: float = Field(
        0.02, ge=0, lt=1, description="allowed drop in agreement, relative to the certificate"
    )

    candidate_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of requests that a candidate gets where it names none; 0: no candidate is"
        " tried ([more](../how-to/publish-models.md#try-on-a-share-of-the-traffic))",
    )
    candidate_sticky: Literal["caller", "request"] = Field(
        "caller",
        description="whether that share is of callers, by their key, or of requests",
    )
    candidate_compared: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a candidate's answers, and as many of the current catalog's, that are compared"
        " with the largest current variant's",
    )
    candidate_delta: float = Field(
        0.05, gt=0, lt=1, description="chance of ever withdrawing a candidate that is no worse"
    )
    candidate_margin: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="by which a candidate that is promoted by rule may be worse; in failures a fifth of it",
    )

    floor_scope: FloorScope = Field(
        FloorScope.LOWER,
        description="floors and losses to route by: `lower`, of all scopes of a certificate, or `all`, of all"
        " clusters ([below](#floors-of-all-clusters))",
    )
    feedback_requests: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="answers that are remembered for [feedback](../how-to/feedback.md); 0: no feedback is taken",
    )
    feedback_file: Path | None = Field(
        None,
        description="JSON lines of questions and reported answers, texts included, for `bertier-optimize certify --data`",
    )

    default_class: str = Field("standard", description="class of a request without one")
    classes: dict[str, SloClass] = Field(
        default_factory=lambda: dict(STANDARD_CLASSES), description="SLO classes by name, see below"
    )

    api_keys_file: Path | None = Field(
        None,
        description="TOML file of [API keys](security.md#keys); with any key set, callers need one",
    )
    api_keys: dict[str, ApiKey] = Field(
        default_factory=dict, description="API keys by name, without a file"
    )

    grpc_connection_age_ms: float = Field(
        10_000, gt=0, description="maximum age of a connection; then the caller opens another"
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file; with `tls_key`, HTTP and gRPC require [TLS](security.md#tls)"
    )
    tls_key: Path | None = Field(None, description="PEM file of its key, without a password")
    tls_client_authority: Path | None = Field(
        None, description="PEM file: callers must show a certificate signed by one of these"
    )

    profiles_folder: str = Field(
        "~/.cache/bertier",
        description="folder that keeps the latencies measured on this host, so that the next start only probes"
        " them; empty: they are not kept",
    )
    catalog_poll_ms: float = Field(
        2_000, gt=0, description="between checks of catalog and model server"
    )
    stop_delay_ms: float = Field(
        0, ge=0, description="keep answering for so long at a stop ([below](#stopping))"
    )
    drain_ms: float = Field(
        10_000,
        gt=0,
        description="how long requests in flight may take at a stop, for each protocol",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is logged"
    )
    log_format: Literal["console", "json"] = Field("console", description="of the log on stderr")
    access_log_share: float = Field(
        0.01, ge=0, le=1, description="share of requests that are logged ([below](#logs))"
    )
    log_texts: bool = Field(
        default=False, description="whether those lines contain question, context and answer"
    )
    decisions_file: Path | None = Field(
        None,
        description="JSON lines with the decision for each question, without texts"
        " ([below](#a-record-of-decisions))",
    )

    @field_validator("host", "metrics_host")
    @classmethod
    def _bare(cls, host: str) -> str:
        """Return an IPv6 address without the brackets it has in a URL."""
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host

    @field_validator("workers", mode="before")
    @classmethod
    def _workers_of(cls, given: object) -> object:
        """Return the number, or `auto`."""
        if given == "auto":
            return given
        if isinstance(given, bool) or not _NUMBER.fullmatch(str(given).strip()):
            raise ValueError("give a whole number of at least 1, or auto")
        return int(str(given))

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, path: str) -> str:
        """Return the path without a slash at its end."""
        if path.strip("/") and not _PREFIX_PATH.fullmatch(path):
            raise ValueError(f"{path!r} is not a path; give one that begins with a slash, e.g. /qa")
        return path.rstrip("/")

    @field_validator("triton_url", mode="before")
    @classmethod
    def _urls_of(cls, given: object) -> object:
        """Return each address of `a,b` or of a list of such; each may come once."""
        parts = [given] if isinstance(given, str) else given
        if not isinstance(parts, list | tuple):
            return given
        urls = [url.strip() for part in parts for url in str(part).split(",") if url.strip()]
        for url in urls:
            if not _URL.fullmatch(url):
                raise ValueError(f"{url!r} is not host:port, e.g. 127.0.0.1:8001")
            if urls.count(url) > 1:
                raise ValueError(f"{url} is named more than once")
        return tuple(urls)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins_of(cls, given: object) -> object:
        """Return each origin of `a,b` or of a list of such."""
        parts = [given] if isinstance(given, str) else given
        if not isinstance(parts, list | tuple):
            return given
        origins = [each.strip() for part in parts for each in str(part).split(",") if each.strip()]
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin; give scheme, host and port as browsers send them, in lower"
                    " case and without a path, e.g. https://app.example"
                )
        return tuple(origins)

    @field_validator("decisions_file", "feedback_file")
    @classmethod
    def _has_a_folder(cls, file: Path | None) -> Path | None:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise ValueError(f"{file}: name a file in a folder that exists")
        return file

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_differ(cls, given: object) -> object:
        """Refuse class names that differ in case only: variables are lower case, headers either."""
        if isinstance(given, dict) and (same := slo.same_but_for_case(map(str, given))):
            raise ValueError(
                f"{same[0]} and {same[1]} differ in case only; give one of them another name"
            )
        return given

    @field_validator("classes")
    @classmethod
    def _classes_are_sane(cls, classes: dict[str, SloClass]) -> dict[str, SloClass]:
        for name, slo_class in classes.items():
            if problem := slo.class_problem(name, slo_class):
                raise ValueError(problem)
        return dict(STANDARD_CLASSES) | classes

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def part_of(self, limit: float) -> float:
        """Return one worker's part of a limit that holds for all of them; at least 1."""
        return limit if self.workers in (1, "auto") else max(1.0, limit / int(self.workers))


def read(**flags: Any) -> Settings:
    """Return the settings; a flag that is None was not given. Raises: SettingsError."""
    check_names(os.environ)
    given = {name: value for name, value in flags.items() if value is not None}
    _check_file(Path(CONFIG_FILE))
    try:
        settings = Settings(**given)
    except ValidationError as exc:
        where, what = settings_errors.describe(exc.errors(), Settings.model_fields)
        raise SettingsError(f"{where}: {what} ({_place(where, given)})") from exc
    except UnreadableSettings as exc:
        raise SettingsError(
            f"{exc}: a table in a variable is JSON, or one variable a field"
        ) from exc
    _check_triton_tls(settings)
    if settings.feedback_file is not None and not settings.feedback_requests:
        raise SettingsError(
            "feedback_file: no feedback is taken; set feedback_requests above 0, too"
        )
    if settings.default_class not in settings.classes:
        known = ", ".join(sorted(settings.classes))
        raise SettingsError(f"default_class: {settings.default_class!r} is not one of {known}")
    return settings


def _check_triton_tls(settings: Settings) -> None:
    """Raise SettingsError for files of TLS that would not be used."""
    if settings.triton_tls_authority is not None and not settings.triton_url:
        raise SettingsError(
            "triton_tls_authority: needs triton_url; a Triton started here is local"
        )
    if (settings.triton_tls_certificate is None) is not (settings.triton_tls_key is None):
        raise SettingsError("triton_tls_certificate, triton_tls_key: set both, or none")
    if settings.triton_tls_certificate is not None and settings.triton_tls_authority is None:
        raise SettingsError("triton_tls_certificate: needs triton_tls_authority")


def _check_file(file: Path) -> None:
    """Raise SettingsError for a file that is not readable TOML, or has a value of the wrong type."""
    if not file.exists():
        return
    try:
        given = tomllib.loads(file.read_text("utf-8"))
    except OSError as exc:
        raise SettingsError(f"{file.absolute()}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise SettingsError(f"{file.absolute()}: not TOML: {exc}") from exc
    for name, value in given.items():
        if name in Settings.model_fields:
            _check_type(name, value, file)


def _check_type(name: str, value: object, file: Path) -> None:
    """Raise SettingsError for a value of the wrong type; only variables, which have no types, are converted."""
    annotation: Any = Settings.model_fields[name].annotation
    field = TypeAdapter[Any](annotation)
    try:
        field.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as exc:
        # Of `workers`, a number or a word, pydantic names each part of the union that it tried.
        union = get_origin(annotation) in (Union, UnionType) and type(None) not in get_args(
            annotation
        )
        skip = int(union)
        wrong = [
            {**e, "loc": (name, *e["loc"][skip:])}
            for e in exc.errors()
            if e["type"] in settings_errors.TYPES
        ]
        if wrong:
            where, what = settings_errors.describe(wrong, Settings.model_fields)
            raise SettingsError(f"{where}: {what} ({file.absolute()})") from exc


def _place(where: str, flags: Mapping[str, Any]) -> str:
    """Return where a setting was set (flag, variable or file); for a table, every place."""
    setting = where.partition(".")[0]
    if setting in flags:
        return f"flag --{setting.replace('_', '-')}"
    variable = PREFIX + where.upper().replace(".", NESTED)
    set_here = [
        name for name in os.environ if f"{name.upper()}{NESTED}".startswith(variable + NESTED)
    ]
    file = Path(CONFIG_FILE)
    if file.exists() and (not set_here or where == setting):
        set_here.append(str(file.absolute()))
    return ", ".join(sorted(set_here)) or variable


def check_names(environ: Mapping[str, str]) -> None:
    """Raise SettingsError for a variable that looks like a setting but is none."""
    if wrong := settings_errors.misspelt(environ, Settings.model_fields):
        raise SettingsError(wrong)
