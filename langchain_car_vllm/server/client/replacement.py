"""A server that is out of date makes room for a new one, once nobody uses it.

It is so where an older release started it, or where its files have been written since.
"""

import time

from packaging.version import InvalidVersion, Version

from langchain_car_vllm.models.file_stamps import recent_stamp
from langchain_car_vllm.server.client.process_lease import ProcessLease
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import State
from langchain_car_vllm.server.supervision import ask_to_make_room
from langchain_car_vllm.version import VERSION


class Replacement:
    """One caller's wish to be served by this release, from the files as they are.

    A server that somebody uses is used as it is, and one of a newer release always.
    """

    def __init__(self, process_lease: ProcessLease, spec: ServerSpec, policy: Policy) -> None:
        self._process_lease = process_lease
        self._spec = spec
        self._policy = policy
        self._began = time.monotonic()
        self._asked_at: float | None = None
        self._is_over = False

    def is_under_way(self) -> bool:
        """Tell whether an old server is about to stop; the lease must not be held meanwhile."""
        if not self._is_over:
            self._is_over = not self._is_expected()
        return not self._is_over

    def _is_expected(self) -> bool:
        state = self._process_lease.state()
        if state is None or not self._is_old(state):
            return False
        now = time.monotonic()
        if self._asked_at is None:
            if not self._process_lease.is_idle():
                return False
            files = recent_stamp(self._spec.source, self._spec.adapter)
            may_wait = now - self._began < self._policy.stop_patience
            if files is not None and files.is_being_written() and may_wait:
                return True
            self._asked_at = now
            ask_to_make_room(self._process_lease.directory.state, state)
        return now - self._asked_at < self._policy.stop_patience

    def _is_old(self, state: State) -> bool:
        return (
            state.phase == "ready"
            and (is_older(state.package) or self._has_other_files(state))
            and self._process_lease.is_author_alive(state)
        )

    def _has_other_files(self, state: State) -> bool:
        if state.files is None or state.package != VERSION:
            return False
        found = recent_stamp(self._spec.source, self._spec.adapter)
        return found is not None and found.digest != state.files


def is_older(package: str | None) -> bool:
    """Tell whether a release of this package is older than the one that runs.

    Args:
        package: Its version, None for one that did not note it.
    """
    if package is None or package == VERSION:
        return package is None
    try:
        return Version(package) < Version(VERSION)
    except InvalidVersion:
        return False
