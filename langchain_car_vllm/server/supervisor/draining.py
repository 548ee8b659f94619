"""A server whose memory is wanted: new requests wait, those under way end, then it goes."""

from langchain_car_vllm.server.directory import server_directories
from langchain_car_vllm.server.locks import is_held, opened_lock, try_exclusive
from langchain_car_vllm.server.process import is_suspended
from langchain_car_vllm.server.state import read_state
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext
from langchain_car_vllm.server.supervisor.usage import ClientRecords


class Eviction:
    """Makes room for a start that names this server among its victims.

    Args:
        context: Of the server.
        clients: Who uses it.
    """

    def __init__(self, context: SupervisorContext, clients: ClientRecords) -> None:
        self._context = context
        self._clients = clients
        self._suspended_since: float | None = None

    def is_under_way(self, now: float) -> bool:
        """Tell whether the memory is wanted and requests are still under way.

        Raises:
            StageEnded: Nobody is served any more, or nobody who goes on.
        """
        context = self._context
        is_asked, context.inbox.eviction_requested = context.inbox.eviction_requested, False
        if not (is_asked or context.state.is_wanted):
            return False
        if try_exclusive(context.lease):
            raise StageEnded("evicted")
        is_wanted = self._is_claimed()
        if is_wanted != context.state.is_wanted:
            context.update(is_wanted=is_wanted)
        if is_wanted:
            self._check_somebody_goes_on(now)
        return is_wanted

    def _is_claimed(self) -> bool:
        """Tell whether a live start names this server; older releases name nobody."""
        for directory in server_directories():
            state = read_state(directory.state)
            if state is None or self._context.directory.key not in state.victims:
                continue
            with opened_lock(directory.supervisor_lock) as descriptor:
                if is_held(descriptor):
                    return True
        return False

    def _check_somebody_goes_on(self, now: float) -> None:
        """End it where all who are served have been suspended for long."""
        holders = self._clients.holders()
        if not holders or not all(map(is_suspended, holders)):
            self._suspended_since = None
            return
        self._suspended_since = self._suspended_since or now
        if now - self._suspended_since > self._context.policy.suspended_patience:
            raise StageEnded("evicted")
