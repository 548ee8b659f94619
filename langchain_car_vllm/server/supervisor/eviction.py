"""A server whose memory is wanted: new requests wait, those under way end, then it goes."""

from langchain_car_vllm.errors import StateDirectoryError
from langchain_car_vllm.server.locks import try_exclusive
from langchain_car_vllm.server.process import is_suspended
from langchain_car_vllm.server.state import State
from langchain_car_vllm.server.supervision import supervised_servers
from langchain_car_vllm.server.supervisor.context import StageEnded, SupervisorContext
from langchain_car_vllm.server.supervisor.usage import ClientRecords
from langchain_car_vllm.support.bounded_http import HttpError, fetch

_STATUS_SECONDS = 1.0
_COUNT = "x-requests-under-way"


class Eviction:
    """Makes room for a start that names this server among its victims."""

    def __init__(self, context: SupervisorContext, clients: ClientRecords) -> None:
        self._context = context
        self._clients = clients
        self._unread_since: float | None = None
        self._has_answered = False
        self._ask_at = 0.0

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
        return is_wanted

    def _check_somebody_goes_on(self, now: float) -> None:
        """End it where all who are served have been suspended for long, or leave answers unread.

        The server has sent these: whoever goes on with such a stream gets the rest of it.
        """
        requesters = self._clients.requesters()
        is_unread = requesters and (all(map(is_suspended, requesters)) or self._is_answered(now))
        if not is_unread:
            self._unread_since = None
            return
        self._unread_since = self._unread_since or now
        last_event = max((use.last_event for use in self._clients.uses), default=0.0)
        since = max(self._unread_since, last_event)
        if now - since > self._context.policy.suspended_patience:
            raise StageEnded("evicted")

    def _is_answered(self, now: float) -> bool:
        """Tell whether the server has no request any more, as it said a moment ago."""
        if now >= self._ask_at:
            self._ask_at = now + self._context.policy.idle_tick
            self._has_answered = _requests_under_way(self._context.state) == "0"
        return self._has_answered


def _requests_under_way(state: State) -> str | None:
    """Ask a server how many requests it has, None where it does not tell."""
    try:
        status = fetch(
            f"http://127.0.0.1:{state.port}/v1/status",
            seconds=_STATUS_SECONDS,
            most_bytes=0,
            headers={"authorization": f"Bearer {state.api_key}"},
        )
    except HttpError:
        return None
    return status.headers.get(_COUNT)
