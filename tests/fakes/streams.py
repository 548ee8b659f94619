"""What proxies do with bytes."""

import socket
from contextlib import suppress


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Lead what comes from one connection into another until it ends."""
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
