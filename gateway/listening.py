"""The sockets of the HTTP fronts: a port that is taken is told with the setting that chooses another."""

from __future__ import annotations

import socket

from gateway.settings import Settings, SettingsError

BACKLOG = 2048


def front(settings: Settings) -> socket.socket:
    """Return the HTTP front's socket. Raises: SettingsError when an own port is taken."""
    if settings.grpc_port:
        bind(settings.host, settings.grpc_port, "grpc_port").close()
    return bind(settings.host, settings.http_port, "http_port")


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Return a socket that listens there. Raises: SettingsError naming `setting`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as exc:
        door.close()
        flag = f"--{setting.replace('_', '-')}"
        raise SettingsError(
            f"{setting}: cannot listen on port {port} of {host} ({exc.strerror}); stop the other"
            f" program, or choose another port with {flag} or BERTIER_{setting.upper()}"
        ) from exc
    door.listen(BACKLOG)
    return door
