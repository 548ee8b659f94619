"""Who holds the other end of a connection on this machine."""

from collections.abc import Iterator

import psutil

from langchain_car_vllm.server.process import Identity


def holds_other_end(server: Identity, server_port: int, own_port: int) -> bool:
    """Tell whether a loopback connection of ours leads to a server process or one of its children.

    A connection that was not accepted yet belongs to whoever listens. Where the kernel does not
    tell, such as without permission, it is taken for the server's.

    Args:
        server: The process that was spawned.
        server_port: Where it listens.
        own_port: From where the connection comes.
    """
    try:
        return any(
            found.laddr
            and found.laddr.port == server_port
            and (
                found.status == psutil.CONN_LISTEN or (found.raddr and found.raddr.port == own_port)
            )
            for process in _with_children(server.pid)
            for found in process.net_connections("tcp4")
        )
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def _with_children(pid: int) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    yield root
    yield from root.children(recursive=True)
