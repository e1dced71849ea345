"""The listening sockets of this process: opened, checked, and closed to new connections."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from gateway.settings import Settings, SettingsError

BACKLOG = 2048


def open_http(settings: Settings) -> socket.socket:
    """Return the listening socket of the HTTP frontend. Raises: SettingsError when a port is in use."""
    if settings.grpc_port:
        bind(settings.host, settings.grpc_port, "grpc_port").close()
    if settings.uds is not None:
        return bind_unix(settings.uds)
    return bind(settings.host, settings.http_port, "http_port")


def reserve_shared(host: str, port: int, setting: str) -> socket.socket:
    """Return a socket that holds a port for workers who listen there on sockets of their own.

    Raises: SettingsError where anybody else has it.
    """
    if port:
        bind(host, port, setting).close()  # else we would share it with another gateway
    family, address = _resolve(host, port, setting)
    holder = socket.socket(family)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Connections of a gateway that was here before may still be in TIME_WAIT.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(address)
    except OSError as exc:
        holder.close()
        raise _unusable(exc, host, port, setting) from exc
    return holder


def is_local(settings: Settings) -> bool:
    """Say whether HTTP is reached from this host alone."""
    if settings.uds is not None or settings.host == "localhost":
        return True
    with suppress(ValueError):  # another name
        return ip_address(settings.host).is_loopback
    return False


def bind_unix(path: Path) -> socket.socket:
    """Return a Unix socket that listens there, in place of one that nobody listens at any more.

    Raises: SettingsError.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            _remove_abandoned(path)
        listener.bind(str(path))
    except OSError as exc:
        listener.close()
        raise SettingsError(
            f"uds: cannot listen on {path} ({exc.strerror or exc}); choose another path, in a folder that"
            " exists, with --uds or BERTIER_UDS"
        ) from exc
    listener.listen(BACKLOG)
    return listener


def _remove_abandoned(path: Path) -> None:
    """Remove a socket that a program left behind; one that is listened at stays."""
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Return a socket that listens there. Raises: SettingsError naming `setting`, or that of the host."""
    family, address = _resolve(host, port, setting)
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise _unusable(exc, host, port, setting) from exc
    listener.listen(BACKLOG)
    return listener


def _resolve(host: str, port: int, setting: str) -> tuple[int, Any]:
    """Return the address of a host, IPv4 before IPv6. Raises: SettingsError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:  # the latter of a label that is too long
        why = getattr(exc, "strerror", None) or "no valid name"
        raise _wrong_host(setting, f"{host!r} cannot be resolved ({why})") from exc
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, address


def _unusable(error: OSError, host: str, port: int, setting: str) -> SettingsError:
    if error.errno == errno.EADDRNOTAVAIL:
        return _wrong_host(setting, f"{host} is no address of this host")
    how = f"--{setting.replace('_', '-')} or BERTIER_{setting.upper()}"
    what = "stop the other program, or choose" if error.errno == errno.EADDRINUSE else "choose"
    return SettingsError(
        f"{setting}: cannot listen on port {port} of {host} ({error.strerror}); {what} another port with {how}"
    )


def _wrong_host(setting: str, what: str) -> SettingsError:
    name = "metrics_host" if setting == "metrics_port" else "host"
    how = "BERTIER_METRICS_HOST" if name == "metrics_host" else "--host or BERTIER_HOST"
    return SettingsError(
        f"{name}: {what}; give an address of this host with {how}: 127.0.0.1, 0.0.0.0 for all, or a name of its own"
    )


def refuse_new(port: int) -> None:
    """Refuse new connections at one of our ports; open ones continue.

    For a library's listener, which can only be closed together with its connections.
    """
    for each in _own_sockets(port):
        if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            with suppress(OSError):  # it is closed already
                each.shutdown(socket.SHUT_RD)


def n_connected(port: int) -> int:
    """Return how many connections are open at a port of ours."""
    return sum(
        not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for each in _own_sockets(port)
    )


def _own_sockets(port: int) -> Iterator[socket.socket]:
    """Yield a copy of each TCP socket of this process whose own end is this port."""
    for entry in Path("/dev/fd").iterdir():
        try:
            copy = os.dup(int(entry.name))
        except OSError:  # the listing's own
            continue
        try:
            found = socket.socket(fileno=copy)
        except OSError:  # no socket
            os.close(copy)
            continue
        with found, suppress(OSError):
            if found.family in {socket.AF_INET, socket.AF_INET6} and (
                found.getsockname()[1] == port
            ):
                yield found
