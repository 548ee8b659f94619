"""A port that stays ours from before the server is spawned until after it is gone."""

import socket
import sys


class HeldPort:
    """A bound socket that never listens.

    While it is bound, `bind(0)` gives the port to nobody, a plain bind fails, connecting is
    refused, and the server, which binds with SO_REUSEADDR, can still listen. On macOS two sockets
    may share a port only on different addresses, so there the wildcard is held.

    Attributes:
        number: The port.
    """

    def __init__(self, platform: str = sys.platform) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("0.0.0.0" if platform == "darwin" else "127.0.0.1", 0))  # noqa: S104
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let the port go."""
        self._socket.close()


def is_refused(port: int, timeout: float = 1.0) -> bool:
    """Tell whether nobody listens on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout).close()
    except ConnectionError:
        return True
    except OSError:
        return False
    return False
