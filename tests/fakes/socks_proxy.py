"""A SOCKS5 proxy on loopback, which leads every name to one port of this machine."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fakes.streams import copy


class SocksProxy:
    """Where it listens, and what was asked of it.

    Attributes:
        address: `host:port`.
        asked: The host and port of each connection so far.
        target: The port that all of them are led to, None to refuse them.
    """

    def __init__(self, address: str, target: int | None) -> None:
        self.address = address
        self.target = target
        self.asked: list[tuple[str, int]] = []


@contextmanager
def running_socks_proxy(target: int | None) -> Iterator[SocksProxy]:
    """Run a proxy in threads of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = SocksProxy(f"127.0.0.1:{listener.getsockname()[1]}", target)
        thread = threading.Thread(target=_accept, args=(listener, proxy), daemon=True)
        thread.start()
        yield proxy
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, proxy: SocksProxy) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, proxy), daemon=True).start()


def _serve(client: socket.socket, proxy: SocksProxy) -> None:
    with suppress(OSError, struct.error), client, client.makefile("rb") as said:
        _, methods = said.read(2)
        said.read(methods)
        client.sendall(b"\x05\x00")
        kind = said.read(4)[3]
        if kind == 3:  # a name
            host = said.read(said.read(1)[0]).decode()
        else:
            family, length = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, said.read(length))
        (port,) = struct.unpack(">H", said.read(2))
        proxy.asked.append((host, port))
        if proxy.target is None:
            client.sendall(b"\x05\x02\x00\x01" + bytes(6))  # not allowed
            return
        with socket.create_connection(("127.0.0.1", proxy.target)) as server:
            client.sendall(b"\x05\x00\x00\x01" + bytes(6))
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()
