"""A server whose memory is wanted: new requests wait, those under way end, then it goes."""

from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.server.locks import try_exclusive
from langchain_car_vllm.server.process import is_suspended
from langchain_car_vllm.server.supervision import supervised_servers
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext
from langchain_car_vllm.server.supervisor.usage import ClientRecords


class Eviction:
    """Makes room for a start that names this server among its victims."""

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
        key = context.directory.key
        try:
            # A live start names this server among its victims; older releases name nobody.
            is_wanted = bool(supervised_servers(key, lambda state: key in state.victims))
        except (OSError, StateDirectoryError):
            context.inbox.eviction_requested = is_asked
            raise
        if is_wanted != context.state.is_wanted:
            context.update(is_wanted=is_wanted)
        if is_wanted:
            self._check_somebody_goes_on(now)
        else:
            self._suspended_since = None
        return is_wanted

    def _check_somebody_goes_on(self, now: float) -> None:
        """End it where all who are served have been suspended for long."""
        requesters = self._clients.requesters()
        if not requesters or not all(map(is_suspended, requesters)):
            self._suspended_since = None
            return
        self._suspended_since = self._suspended_since or now
        if now - self._suspended_since > self._context.policy.suspended_patience:
            raise StageEnded("evicted")
