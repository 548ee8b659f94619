"""Darwin's rules on Linux, for every Python that has this folder on its path.

What is sent to a socket that is bound but does not listen is dropped, not refused: whoever connects
hears nothing until its timeout. The ports are noted in the file that DARWIN_SWALLOWED names.
"""

import os
import socket
from pathlib import Path

_LOOPBACK = ("127.0.0.1", "localhost")
_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_black_holes = []


def _is_held(address):
    """Tell whether a port of 127.0.0.1 is bound and nobody listens there."""
    return _bind_fails(address[1], 0) and not _bind_fails(address[1], 1)


def _bind_fails(port, reuse):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _black_hole():
    """Return the address of a listener whose queue is full: the kernel drops what comes."""
    if not _black_holes:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        _black_holes.append(listener)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            _connect_ex(filler, listener.getsockname())
            _black_holes.append(filler)
    return _black_holes[0].getsockname()


def _redirected(sock, address):
    if sock.family != socket.AF_INET or sock.type != socket.SOCK_STREAM:
        return address
    if address[0] not in _LOOPBACK or not _is_held(address):
        return address
    if note := os.environ.get("DARWIN_SWALLOWED"):
        with Path(note).open("a", encoding="ascii") as file:
            file.write(f"{address[1]}\n")
    return _black_hole()


def _darwin_connect(sock, address):
    return _connect(sock, _redirected(sock, address))


def _darwin_connect_ex(sock, address):
    return _connect_ex(sock, _redirected(sock, address))


socket.socket.connect = _darwin_connect
socket.socket.connect_ex = _darwin_connect_ex
