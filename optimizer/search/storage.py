"""Storage of trials: a database that many workers share, or a file of one worker.

With `ask_tell` and `cost_queue` the only module that knows Optuna.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from gateway.errors import BertierError
from optimizer.study import workers

Direction = Literal["minimize", "maximize"]
DIRECTIONS: tuple[Direction, ...] = (
    "maximize",  # F1
    "minimize",  # p95 in ms
    "minimize",  # bytes
)
HOST = "host"  # attribute of a study
FAMILY = "family"  # attribute of studies that differ in their limits alone
OPENINGS = 5  # attempts: workers that start together may conflict while creating tables
KEEPALIVE_S = 60  # of a connection that is silent while its worker trains
OPENING_S = 1.0  # between two attempts

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)


class SearchError(BertierError):
    """The search cannot continue; finished trials are kept."""


@contextmanager
def opened(url: str | None, folder: Path, name: str) -> Iterator[optuna.Study]:
    """Open or join a study: in a database that many workers share, or in a file of one.

    Raises: SearchError, also when the database is lost later; Busy when the file is in use.
    """
    with opened_among(url, folder, name, None) as (study, _):
        yield study


@contextmanager
def opened_among(
    url: str | None, folder: Path, name: str, family: str | None
) -> Iterator[tuple[optuna.Study, list[optuna.Study]]]:
    """Open or join a study, and return the others of its family with it; None: it has none.

    Raises: as `opened`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _mapped(_shown(url, folder), "trials"):
        if url:
            with _joined(url, name, DIRECTIONS) as (study, storage):
                yield study, _relatives(study, storage, family)
        else:
            busy = f"{folder}: another search runs there; with --storage many share one study"
            with (
                workers.alone(folder / "search.lock", busy),
                _joined(_file(folder / "trials.db"), name, DIRECTIONS) as (study, storage),
            ):
                yield study, _relatives(study, storage, family)


@contextmanager
def opened_requests(url: str, name: str) -> Iterator[optuna.Study]:
    """Open or join a study whose trials are requests for latencies. Raises: SearchError."""
    shown = _shown(url, Path())
    with _mapped(shown, "measurements"), _joined(url, name, ("minimize",)) as (study, _):
        yield study


@contextmanager
def _mapped(storage: str, kept: str) -> Iterator[None]:
    try:
        yield
    except STORAGE_ERRORS as exc:
        raise SearchError(
            f"{storage}: the storage of trials failed ({_first_line(exc)}); finished {kept} are kept,"
            " and the same command goes on"
        ) from exc


@contextmanager
def claims(url: str | None, folder: Path) -> Iterator[workers.Claim]:
    """Give what workers share their work by: locks in a PostgreSQL, or without a URL in the folder.

    The database frees what a worker had when its connection ends. Raises: SearchError.
    """
    if url is None:
        yield lambda name: workers.claimed(folder / f"{name}.lock")
        return
    if not url.startswith(("postgresql", "postgres")):
        raise SearchError(
            "--storage: workers share finishing through PostgreSQL only: write postgresql://..."
        )
    try:
        engine = create_engine(
            _with_driver(url), poolclass=NullPool, connect_args={"keepalives_idle": KEEPALIVE_S}
        )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield partial(_claimed, connection, folder.parent.name)
    except ImportError as exc:
        raise _without_driver(exc) from exc
    except STORAGE_ERRORS as exc:
        raise SearchError(
            f"{_shown(url, folder)}: the database that workers share failed ({_first_line(exc)});"
            " finished members are kept, and the same command goes on"
        ) from exc


@contextmanager
def _claimed(connection: Connection, study: str, name: str) -> Iterator[bool]:
    digest = hashlib.sha256(f"{study}/{name}".encode()).digest()
    key = {"key": int.from_bytes(digest[:8], signed=True)}
    mine = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), key))
    try:
        yield mine
    finally:
        if mine:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)


@contextmanager
def _joined(
    url: str, name: str, directions: Sequence[Direction]
) -> Iterator[tuple[optuna.Study, RDBStorage]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _connect(url)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        yield study, storage
    finally:
        storage.engine.dispose()


def _relatives(study: optuna.Study, storage: RDBStorage, family: str | None) -> list[optuna.Study]:
    if family is None:
        return []
    study.set_user_attr(FAMILY, family)
    return [
        optuna.load_study(study_name=known.study_name, storage=storage)
        for known in optuna.get_all_study_summaries(storage, include_best_trial=False)
        if known.study_name != study.study_name and known.user_attrs.get(FAMILY) == family
    ]


def _file(path: Path) -> str:
    """Return the URL of a database file in write-ahead mode, which halves the time of a write."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    return f"sqlite:///{path}"


def _connect(url: str, tries: int = OPENINGS) -> RDBStorage:
    try:
        return RDBStorage(_with_driver(url), engine_kwargs={"pool_pre_ping": True})
    except ImportError as exc:
        raise _without_driver(exc) from exc
    except (IntegrityError, ProgrammingError):
        if tries == 1:
            raise
        time.sleep(OPENING_S)
        return _connect(url, tries - 1)


def _without_driver(exc: ImportError) -> SearchError:
    return SearchError(f"--storage: {exc} PostgreSQL: pip install 'bertier[postgres]'")


def _with_driver(url: str) -> str:
    kind, separator, rest = url.partition("://")
    known = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
    return known.get(kind, kind) + separator + rest


def _shown(url: str | None, folder: Path) -> str:
    """Return the storage URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True) if url else str(folder)
    except SQLAlchemyError:
        return "--storage"


def _first_line(exc: BaseException) -> str:
    cause = getattr(exc.__cause__ or exc, "orig", None) or exc.__cause__ or exc
    return str(cause).strip().split("\n")[0]


def is_of_host(study: optuna.Study, host: str) -> bool:
    """Return whether the study's latencies were measured on this kind of host."""
    return bool(study.user_attrs.get(HOST) == host)


def same_host(study: optuna.Study, host: str) -> None:
    """Raises: SearchError when the study's latencies were measured on another kind of host."""
    first = study.user_attrs.get(HOST)
    if first is None:
        study.set_user_attr(HOST, host)
    elif first != host:
        raise SearchError(
            f"{study.study_name}: its latencies are of {first}, this is {host}, and the two cannot"
            " be compared; join from the same kind of host, or give the study another name"
        )
