"""A port that stays ours from before the server is spawned until after it is gone."""

import errno
import socket
import sys


class HeldPort:
    """A bound socket that never listens.

    While it is bound, `bind(0)` gives the port to nobody, a plain bind fails, nobody can connect
    (Linux refuses, macOS does not answer), and the server, which binds with SO_REUSEADDR, can still
    listen. On macOS two sockets may share a port only on different addresses, so there the wildcard
    is held.

    Attributes:
        number: The port.
    """

    def __init__(self, platform: str = sys.platform) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("0.0.0.0" if platform == "darwin" else "127.0.0.1", 0))  # noqa: S104
        except OSError:
            self._socket.close()
            raise
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let the port go."""
        self._socket.close()


def is_free(port: int) -> bool:
    """Tell whether no socket but a `HeldPort` has a port of 127.0.0.1.

    It binds the very address and never connects: macOS drops what is sent to a socket that is bound
    but does not listen, so that connecting would tell nothing until its timeout.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True
