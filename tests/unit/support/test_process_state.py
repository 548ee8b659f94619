"""A forked child neither hangs in a lock of its parent's nor uses what is its parent's."""

import importlib
import os
import pkgutil
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.support.process_state import KeptProperty, ProcessLock, import_whole

# Programs, and what runs in the server's Python alone.
_NOT_IMPORTED = (".__main__", ".supervisor.launch", ".downloader", ".tiny_server")
if "VllmMlxDecisions" not in langchain_car_vllm.__all__:  # langchain-core before 1.8
    _NOT_IMPORTED += (".decisions",)
_WAITED_FOR = ("_gate",)  # by a fork, so that no child is born while it is held
_KINDS = (ProcessLock, type(threading.Lock()), type(threading.RLock()))


def lock_names() -> list[tuple[str, str, str | None]]:
    """Return where the package keeps locks: a module, its attribute, and that one's attribute."""
    found = []
    for module in pkgutil.walk_packages(langchain_car_vllm.__path__, "langchain_car_vllm."):
        if module.name.endswith(_NOT_IMPORTED):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, _KINDS) and name not in _WAITED_FOR:
                found.append((module.name, name, None))
            elif type(value).__module__ == module.name:
                inner = getattr(value, "__dict__", {})
                found += [
                    (module.name, name, attribute)
                    for attribute, part in inner.items()
                    if isinstance(part, _KINDS)
                ]
    return found


def lock_at(module: str, name: str, attribute: str | None) -> ProcessLock:
    """Return the lock that has that place now."""
    value = getattr(importlib.import_module(module), name)
    return getattr(value, attribute) if attribute else value


@contextmanager
def held_by_another_thread(lock: ProcessLock) -> Iterator[None]:
    """Have another thread hold a lock."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        lock.acquire()
        held.set()
        done.wait()
        lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def code_of_child(work) -> int:
    """Fork, do some work in the child and return its exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_locks_are_found():
    """The search finds those of modules and those of their objects."""
    places = lock_names()
    assert any(attribute is None for _, _, attribute in places)
    assert any(attribute is not None for _, _, attribute in places)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("place", lock_names(), ids=lambda place: ".".join(filter(None, place)))
def test_a_child_gets_every_lock(place: tuple[str, str, str | None]):
    """A fork while another thread holds a lock leaves it free in the child, held in the parent."""
    lock = lock_at(*place)
    with held_by_another_thread(lock):
        assert code_of_child(lambda: lock_at(*place).acquire(timeout=5)) == 0
        assert not lock.acquire(blocking=False)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_thread_that_forks_keeps_its_own_lock():
    """The child goes on inside the block that its parent forked in."""
    lock = ProcessLock()

    def is_kept() -> bool:
        was_held = lock.is_mine()
        lock.release()
        return was_held and not lock.is_mine() and lock.acquire(blocking=False)

    with lock:
        assert code_of_child(is_kept) == 0
        assert lock.is_mine()
    assert not lock.is_mine()


def test_what_the_collector_ends_does_not_block_its_own_thread():
    """Such a lock is taken again by the thread that holds it, and free after the last release."""
    lock = ProcessLock()
    with lock, lock, held_by_another_thread(ProcessLock()):
        assert lock.is_mine()
    with held_by_another_thread(lock):
        assert not lock.acquire(blocking=False)


class SignalError(Exception):
    """What Ctrl-C raises here."""


def use_lock(lock: ProcessLock) -> None:
    for _ in range(10_000):
        with lock:
            pass


def take_at_once(lock: ProcessLock) -> bool:
    """Tell whether another thread gets the lock, and give it back."""
    had = []

    def take() -> None:
        had.append(lock.acquire(blocking=False))
        if had[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return had[0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_signal_at_any_moment_leaves_no_lock_behind(reentrant: bool):
    """Whoever was to have it for a block has not got it, or gives it back."""
    lock = ProcessLock(reentrant=reentrant)
    over = threading.Event()

    def send() -> None:
        while not over.wait(random.uniform(0.0001, 0.0005)):
            os.kill(os.getpid(), signal.SIGUSR1)

    def interrupt(_: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not use_lock.__code__:
            frame = frame.f_back
        if frame is not None:
            raise SignalError

    usual = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    heard = left = 0
    try:
        while heard < 200:
            try:
                use_lock(lock)
            except SignalError:
                heard += 1
                left += not take_at_once(lock)
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, usual)
    assert left == 0


def test_other_locks_are_taken_once():
    """Even by the thread that holds it, and another thread may give it back."""
    lock = ProcessLock(reentrant=False)
    assert lock.acquire()
    assert not lock.acquire(blocking=False)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert lock.acquire(blocking=False)
    lock.release()


SLOW = """import os, threading
began, gate = os.environ["SLOW_IMPORT"].split()
os.close(int(began))
os.read(int(gate), 1)
"""


@contextmanager
def slow_import(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Have another thread import a module, and yield what lets it come to its end."""
    (folder / f"{name}.py").write_text(SLOW)
    patch.syspath_prepend(folder)
    (is_begun, began), (waiting, gate) = os.pipe(), os.pipe()
    patch.setenv("SLOW_IMPORT", f"{began} {waiting}")
    importing = threading.Thread(target=import_whole, args=(name,))
    importing.start()
    assert os.read(is_begun, 1) == b""
    yield lambda: os.close(gate)
    importing.join()
    for descriptor in (is_begun, waiting):
        os.close(descriptor)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_waits_for_what_is_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The child has not the thread that imports, and would wait forever for it to end."""

    def is_imported() -> bool:
        signal.alarm(10)
        return bool(importlib.import_module("slow_import"))

    with slow_import("slow_import", tmp_path, monkeypatch) as end:
        threading.Timer(0.2, end).start()
        assert code_of_child(is_imported) == 0


def test_no_import_waits_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What takes seconds holds up neither what is shown meanwhile nor an event loop."""
    (tmp_path / "quick_import.py").write_text("")
    with slow_import("slower_import", tmp_path, monkeypatch) as end:
        other = threading.Thread(target=import_whole, args=("quick_import",))
        other.start()
        other.join(10)
        is_over = not other.is_alive()
        end()
    assert is_over


begun, may_go_on = threading.Event(), threading.Event()


def wait_to_go_on() -> None:
    begun.set()
    may_go_on.wait(30)


class Keeping:
    """Keeps a value that another thread is just computing."""

    def __init__(self, compute: Callable[[], object]) -> None:
        self._compute = compute

    @KeptProperty
    def value(self) -> object:
        """What is kept."""
        return self._compute()


class SlowModel(ChatVllmMlx):
    """A model that another thread is just writing down for a trace."""

    def to_json(self):
        wait_to_go_on()
        return super().to_json()


ENDPOINT = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
KEPT: dict[str, Callable[[bool], object]] = {
    "a property": lambda is_slow: Keeping(wait_to_go_on if is_slow else object).value,
    "a model": lambda is_slow: (SlowModel if is_slow else ChatVllmMlx)(**ENDPOINT)._serialized,
}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", KEPT)
def test_a_child_computes_what_its_parent_was_computing(name: str):
    """Python's and LangChain's properties hold a lock of all objects meanwhile (Python 3.11)."""

    def is_had() -> bool:
        signal.alarm(10)
        return KEPT[name](False) is not None

    begun.clear()
    may_go_on.clear()
    computing = threading.Thread(target=KEPT[name], args=(True,))
    computing.start()
    assert begun.wait(30)
    try:
        assert code_of_child(is_had) == 0
    finally:
        may_go_on.set()
        computing.join()


def test_what_is_kept_is_computed_once():
    """It shows in the object, and the class shows the property."""
    keeping = Keeping(object)
    assert keeping.value is keeping.value is vars(keeping)["value"]
    assert Keeping.value.__doc__ == "What is kept."
