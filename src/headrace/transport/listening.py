"""The listening socket: light to import, so that a taken port is found before anything starts."""

from __future__ import annotations

import socket

from headrace.link.errors import ConfigurationError
from headrace.transport.settings import TransportSettings

BACKLOG = 2048
"""Connections that wait to be accepted."""


def bind(settings: TransportSettings) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigurationError: the address is in use, not allowed or does not exist.
    """
    where = f"{settings.hostname}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.hostname, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {where}: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener
