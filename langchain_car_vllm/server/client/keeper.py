"""What keeps a server in memory without asking anything of it."""

from langchain_car_vllm.server.client.process_lease import ProcessLease
from langchain_car_vllm.support.process_state import ProcessLock


class Keeper:
    """Keeps the server that the last request led to, as `keep_alive=-1` does, until it is closed.

    It holds no lease: others may have the memory, or replace the server, while no request is under
    way. A request starts it again then, and keeps it again.

    Args:
        keep_alive: Seconds that the server stays once it is kept no more.
    """

    def __init__(self, keep_alive: float) -> None:
        self._keep_alive = keep_alive
        self._mutex = ProcessLock()
        self._kept: ProcessLease | None = None
        self._is_closed = False

    def keep(self, process_lease: ProcessLease) -> None:
        """Keep the server of a request that holds the lease, and no other any more.

        Raises:
            StateDirectoryError: The mark cannot be written.
        """
        with self._mutex:
            if self._is_closed:
                return
            process_lease.keep(self)
            if self._kept is not process_lease:
                self._let_go()
                self._kept = process_lease

    def close(self) -> None:
        """Keep none any more."""
        with self._mutex:
            self._is_closed = True
            self._let_go()

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.release(self, self._keep_alive)
            self._kept = None
