"""When a starting server can serve: the tests that it has to pass, in their order."""

import secrets
from http import HTTPStatus
from itertools import chain
from typing import NamedTuple

import psutil

from langchain_car_vllm.server.process import group_members
from langchain_car_vllm.support.bounded_http import HttpError, HttpResponse, fetch
from langchain_car_vllm.support.json_objects import read_json_object

_LONGEST_ANSWER = 1_000_000
_LONGEST_NAME = 80


class FailedTest(NamedTuple):
    """A test that a server did not pass.

    Attributes:
        rank: How many tests it passed before.
        sentence: What is wrong, such as `/health` names another model.
    """

    rank: int
    sentence: str

    @property
    def has_listener(self) -> bool:
        """Whether the server listens, so that the tests themselves keep it busy."""
        return self.rank > 0


_NOT_LISTENING = FailedTest(0, "it does not listen on its port")
_UNTOLD = FailedTest(
    0, "this system does not show which process listens on its port, as in a sandbox"
)


def failed_test(
    port: int, group: int, served_model: str, api_key: str, timeout: float
) -> FailedTest | None:
    """Return the first test that our server does not pass on a port that we hold, None if ready.

    In this order, so that a stranger on the port never sees the key: the listener belongs to our
    process group, `/health` names our model, a wrong key is turned away, the right one is not.
    Nothing connects before the first of them passes: on macOS a connection to a port that is held
    but not listened on is neither accepted nor refused.
    """
    try:
        if not _listens(group, port):
            return _NOT_LISTENING
    except psutil.AccessDenied:
        return _UNTOLD
    if problem := _health_problem(port, served_model, timeout):
        return FailedTest(1, f"`/health` {problem}")
    status = _status(port, secrets.token_hex(16), timeout)
    if status != HTTPStatus.UNAUTHORIZED:
        return FailedTest(2, f"`/v1/models` answers {_status_text(status)} to a wrong key, not 401")
    status = _status(port, api_key, timeout)
    if status != HTTPStatus.OK:
        return FailedTest(
            3, f"`/v1/models` answers {_status_text(status)} to the right key, not 200"
        )
    return None


class ReadinessStall:
    """Tells a server that listens but fails the same test for too long.

    What it computes or logs then is not a sign of life: the tests themselves make it do so.

    Args:
        limit: Seconds without a further test passed that are too many, 0 for none.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._best = _NOT_LISTENING
        self._since = 0.0

    def is_stalled(self, failed: FailedTest, now: float) -> bool:
        """Return whether no further test was passed for too long."""
        if failed.rank > self._best.rank:
            self._best, self._since = failed, now
        is_tested = self._best.has_listener
        return bool(self._limit) and is_tested and now - self._since > self._limit


def _listens(group: int, port: int) -> bool:
    """Ask the system for the listeners of the group; its leader, mostly the one, comes first.

    Raises:
        AccessDenied: It does not tell, and somebody may listen all the same.
    """
    is_told = True
    for pid in chain([group], (process.pid for process in group_members(group))):
        try:
            if _has_listener(pid, port):
                return True
        except psutil.AccessDenied:
            is_told = False
    if not is_told:
        raise psutil.AccessDenied(group)
    return False


def _has_listener(pid: int, port: int) -> bool:
    try:
        connections = psutil.Process(pid).net_connections("tcp4")
    except psutil.NoSuchProcess:  # gone, or a zombie
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def _health_problem(port: int, served_model: str, timeout: float) -> str | None:
    answer = _get(port, "/health", {}, timeout)
    if answer is None or answer.status != HTTPStatus.OK:
        return f"answers {_status_text(answer and answer.status)}, not 200"
    health = read_json_object(answer.body)
    if health is None:
        return "does not answer with a JSON object"
    if (name := health.get("model_name")) != served_model:
        return f"names the model {str(name)[:_LONGEST_NAME]!r}, not {served_model!r}"
    return "says `unhealthy`" if health.get("status") == "unhealthy" else None


def _status_text(status: int | None) -> str:
    return "nothing" if status is None else str(status)


def _status(port: int, api_key: str, timeout: float) -> int | None:
    answer = _get(port, "/v1/models", {"Authorization": f"Bearer {api_key}"}, timeout)
    return None if answer is None else answer.status


def _get(port: int, path: str, headers: dict[str, str], timeout: float) -> HttpResponse | None:
    try:
        return fetch(
            f"http://127.0.0.1:{port}{path}",
            seconds=timeout,
            most_bytes=_LONGEST_ANSWER,
            headers=headers,
        )
    except HttpError:
        return None
