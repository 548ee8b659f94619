"""This process's side of one server key: its lease, its record and its view of the state."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from langchain_car_vllm.server.client.spawn import Start
from langchain_car_vllm.server.client.use_mark import UseMark
from langchain_car_vllm.server.client_record import (
    kept_mark,
    record_name,
    request_mark,
    touch_record,
    write_record,
)
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.locks import (
    close_lock,
    is_held,
    is_same_file,
    open_existing,
    open_lock,
    opened_lock,
    release,
    try_exclusive,
    try_shared,
)
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import reap_orphans
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import State, known_state
from langchain_car_vllm.support.process_state import ProcessLock, reset_after_fork


class ProcessLease:
    """Shared by all threads and tasks of a process that use one server key.

    The lease is one shared `flock` for the whole process, held while any of its requests is under
    way; the kernel drops it however the process dies.

    Args:
        directory: Of the server key; made if missing.

    Raises:
        StateDirectoryError: The directory cannot be made or written to.
    """

    def __init__(self, directory: ServerDirectory) -> None:
        directory.create()
        self.directory = directory
        self._mutex = ProcessLock()
        with explain_os_errors(directory.path):
            self._lease = open_lock(directory.lease_lock)
            self._supervisor = open_lock(directory.supervisor_lock)
            self._server = open_lock(directory.server_lock)
        self._is_abandoned = self._is_retired = False
        self._holders: set[object] = set()
        self._keepers: set[object] = set()
        self._ended: deque[tuple[object, float]] = deque()
        self._record: Path | None = None
        self._keep_alive: float | None = None
        self._author: tuple[str, int] | None = None
        self._start: Start | None = None
        self._ours: set[int] = set()
        self._orphans: set[int] = set()
        self._request_mark = UseMark(request_mark(directory.clients))
        self._kept_mark = UseMark(kept_mark(directory.clients))

    @property
    def holders(self) -> int:
        """How many requests of this process hold the lease."""
        return len(self._holders)

    def acquire(self, holder: object, keep_alive: float) -> bool:
        """Take the lease for one request; False while the server is stopping for idleness.

        Args:
            holder: Who gives it back, also where this was interrupted and nobody knows how far.
            keep_alive: Seconds that the request wants the server to stay.

        Raises:
            StateDirectoryError: This process's record cannot be written.
        """
        with self._guarded(), self._explained():
            try:
                if not self._holders and not try_shared(self._lease):
                    return False
                if not self._holders:
                    self._request_mark.show()
                if keep_alive != self._keep_alive:
                    self._write_record(keep_alive)
                self._holders.add(holder)
            except BaseException:
                if not self._holders:
                    self._request_mark.hide()
                    release(self._lease)
                raise
            return True

    def keep(self, keeper: object) -> None:
        """Keep the server from stopping for idleness, until this is released.

        A request holds the lease meanwhile, so that a server which is about to stop is not meant.

        Raises:
            StateDirectoryError: The mark cannot be written.
        """
        with self._guarded(), self._explained():
            self._keepers.add(keeper)
            self._kept_mark.show()

    def release(self, holder: object, keep_alive: float) -> None:
        """Give back what a request or a keeper has, and tell the supervisor that it ended.

        It never raises: an answer that was given is not lost for a record that cannot be written.
        Where this thread is in the middle of something else here, that is brought to its end first.
        """
        if self._is_abandoned:
            return
        self._ended.append((holder, keep_alive))
        if not self._mutex.is_mine():
            with self._guarded():
                pass

    def _explained(self) -> AbstractContextManager[None]:
        """Turn what the system says about the files here into this package's error."""
        return explain_os_errors(self.directory.path)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let one thread in, and give back what was to be given back, before and meanwhile."""
        with self._mutex:
            self._give_back()
            try:
                yield
            finally:
                self._give_back()

    def _give_back(self) -> None:
        while self._ended:
            ended = self._ended[0]
            self._end(*ended)
            with suppress(ValueError):  # what was collected meanwhile has done it
                self._ended.remove(ended)

    def _end(self, holder: object, keep_alive: float) -> None:
        """Note the end of a request or a keeper; an interrupted one is begun anew."""
        if holder not in self._holders | self._keepers or self._is_abandoned:
            return
        try:
            self._tell_end(keep_alive)
        except OSError:
            self._keep_alive = None
        finally:
            if self._keepers == {holder}:
                self._kept_mark.hide()
            if self._holders == {holder}:
                self._request_mark.hide()
                release(self._lease)
            self._keepers.discard(holder)
            self._holders.discard(holder)
            if self._is_retired and not self._holders:
                self._close()

    def state(self) -> State | None:
        """Return the state, None where there is none that can be read."""
        with explain_os_errors(self.directory.state):
            return known_state(self.directory.state)

    def is_idle(self) -> bool:
        """Tell whether no process, this one included, holds the lease."""
        with self._explained(), opened_lock(self.directory.lease_lock) as descriptor:
            return try_exclusive(descriptor)

    def is_server_alive(self) -> bool:
        """Ask the kernel whether the server process lives."""
        with self._explained():
            return is_held(self._server)

    def is_author_alive(self, state: State) -> bool:
        """Ask the kernel whether the very supervisor that wrote a state lives."""
        tag = state.supervisor.tag
        path = self.directory.author_lock(tag)
        with self._guarded(), self._explained():
            author = self._author
            if author is None or author[0] != tag or not is_same_file(author[1], path):
                if self._author is not None:
                    close_lock(self._author[1])
                self._author = None
                with suppress(FileNotFoundError):
                    self._author = tag, open_existing(path)
            is_alive = self._author is not None and is_held(self._author[1])
        if is_alive:
            known = (state.supervisor, state.server)
            self._ours = {identity.pid for identity in known if identity}
        return is_alive

    def is_supervisor_alive(self) -> bool:
        """Ask the kernel whether the supervisor lives."""
        self.reap_orphans()
        with self._explained():
            if is_held(self._supervisor):
                return True
        if self._ours:
            self._orphans |= self._ours
            self._ours = set()
            self.reap_orphans()
        return False

    def reap_orphans(self) -> None:
        """Reap what supervisors that are gone left to this process; a server ends after them."""
        self._orphans -= {pid for pid in list(self._orphans) if reap_orphans(pid)}

    def begin_start(self, spec: ServerSpec, policy: Policy) -> Start:
        """Start a supervisor, or join the attempt of this process that is under way."""
        with self._guarded():
            if self._start is None or not self._start.is_alive():
                self._start = Start(self.directory, spec, policy)
            return self._start

    def is_current(self) -> bool:
        """Tell whether the lock files are still those that were opened, not ones made anew."""
        directory = self.directory
        opened = (
            (self._lease, directory.lease_lock),
            (self._supervisor, directory.supervisor_lock),
            (self._server, directory.server_lock),
        )
        with self._explained():
            return all(is_same_file(descriptor, path) for descriptor, path in opened)

    def retire(self) -> None:
        """Close the files of a directory that is gone, once no request holds the lease."""
        with self._guarded():
            self._is_retired = True
            if not self._holders:
                self._close()

    def _close(self) -> None:
        self._is_abandoned = True
        self._request_mark.close()
        self._kept_mark.close()
        author = [self._author[1]] if self._author else []
        for descriptor in (self._lease, self._supervisor, self._server, *author):
            close_lock(descriptor)

    def abandon(self) -> None:
        """Forget everything after `fork`: the lease is the parent's."""
        self._is_abandoned = True

    def _tell_end(self, keep_alive: float) -> None:
        if keep_alive != self._keep_alive:
            self._write_record(keep_alive)
        elif self._record is not None:
            touch_record(self._record, keep_alive)

    def _write_record(self, keep_alive: float) -> None:
        if self._record is None:
            self._record = self.directory.clients / record_name()
        write_record(self._record, keep_alive)
        self._keep_alive = keep_alive


_leases: dict[str, ProcessLease] = {}
_leases_mutex = ProcessLock()


def process_lease_of(directory: ServerDirectory) -> ProcessLease:
    """Return this process's lease of a server key."""
    with _leases_mutex:
        name = str(directory.path)
        known = _leases.get(name)
        if known is None or not known.is_current():
            _leases[name] = ProcessLease(directory)
            if known is not None:
                known.retire()
        return _leases[name]


def process_leases() -> list[ProcessLease]:
    """Return all server keys that this process has used."""
    with _leases_mutex:
        return list(_leases.values())


def _forget_after_fork() -> None:
    for held in _leases.values():
        held.abandon()
    _leases.clear()


reset_after_fork(_forget_after_fork)
