"""Whichever look at the run state the system refuses: an answer, or an error of this package."""

import asyncio
import errno
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from faults.support import FAST, Fake, eventually, run_in_this_process
from faults.turns import Make, Server, enter, enters

from langchain_car_vllm.cli.app import main
from langchain_car_vllm.errors import CarVllmError, StateDirectoryError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.runtime import ensure_runtime, installed_version
from langchain_car_vllm.server import alease, lease, lost_servers, running_servers
from langchain_car_vllm.server.client import process_lease
from langchain_car_vllm.server.client.stop import idle_seconds
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.plan import plan_for
from langchain_car_vllm.server.supervisor.old_keys import remove_old_keys

_BY_NAME = ("stat", "lstat", "listdir", "scandir", "replace", "rename", "unlink", "mkdir")
_BY_EITHER = ("open", "utime", "fstat", "pwrite")
ERRORS = (errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOSPC, errno.ENOENT, errno.ENOTDIR)


# A call that waits for what was refused looks again and again.
_MOST_CALLS = 60


class Refusals:
    """Has one call to the system about files below a folder fail, the others not.

    Args:
        root: The folder; what goes by a descriptor counts, too.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._calls = 0
        self._refused = 0
        self._error = 0

    def refuse(self, error: int, number: int) -> None:
        """Have the call of a number fail, None of them with 0."""
        self._calls, self._refused, self._error = 0, number, error

    @property
    def calls(self) -> int:
        """How many there were since then."""
        return self._calls

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand between the program and its system."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (*_BY_NAME, *_BY_EITHER):
                by_number = name in _BY_EITHER and name != "open"
                patch.setattr(os, name, self._wrap(getattr(os, name), by_number=by_number))
            patch.setattr(io, "open", self._wrap(io.open, by_number=False))
            yield

    def _wrap(self, call: Callable[..., object], *, by_number: bool) -> Callable[..., object]:
        def called(*arguments: object, **options: object) -> object:
            about = arguments[0] if arguments else None
            is_file = isinstance(about, str | os.PathLike)
            is_ours = (
                os.fspath(about).startswith(self._root)
                if is_file
                else (by_number and isinstance(about, int))
            )
            if is_ours:
                self._calls += 1
                if self._calls == self._refused:
                    raise OSError(self._error, os.strerror(self._error), str(about))
            return call(*arguments, **options)

        return called


def outcomes(
    refusals: Refusals, call: Callable[[], object], errors: Sequence[int]
) -> Iterator[Exception | None]:
    """Make a call again and again, each time with another look refused in another way."""
    for error in errors:
        number, calls = 0, 1
        while number <= min(calls, _MOST_CALLS):
            refusals.refuse(error, number)
            try:
                with refusals.installed():
                    call()
            except Exception as raised:  # noqa: BLE001 - it is looked at
                yield raised
            else:
                yield None
            calls = max(calls, refusals.calls)
            number += 1


def check(refusals: Refusals, call: Callable[[], object], errors: Sequence[int] = ERRORS) -> None:
    found = list(outcomes(refusals, call, errors))
    odd = [error for error in found if not isinstance(error, CarVllmError | None)]
    assert odd == []
    assert len(found) >= len(errors) * 2, "nothing was looked at"


@pytest.mark.parametrize("is_known", [True, False])
def test_a_server_is_held_or_a_typed_error_is_raised(fake: Fake, monkeypatch, is_known: bool):
    """Sync and async, with what the program has open and without; nothing is started anew."""

    def forget() -> None:
        for held in process_lease.process_leases():
            held.retire()
        monkeypatch.setattr(process_lease, "_leases", {})

    def hold() -> None:
        if not is_known:
            forget()
        with lease(fake.spec(), policy=FAST) as held:
            assert held.endpoint.generation == 1

    async def ahold() -> None:
        async with alease(fake.spec(), policy=FAST) as held:
            assert held.endpoint.generation == 1

    hold()
    refusals = Refusals(fake.directory().path.parents[1])
    check(refusals, hold)
    if is_known:
        check(refusals, lambda: asyncio.run(ahold()))
    hold()
    assert len(fake.starts()) == 1


def test_a_place_in_the_queue_is_not_lost_to_others(
    admission: Make, directory: ServerDirectory, server: Server
):
    """A request ends with a typed error, and who comes after it is let in."""

    def pass_through() -> None:
        first, second = admission(), admission()
        try:
            enters(first)
            enters(second, late=True)
            first.begin()
            enters(second, late=True)
            first.leave(is_over=True)
        finally:
            first.leave(is_over=True)
            second.leave(is_over=True)

    check(Refusals(directory.path), pass_through)
    enter(admission())


def test_a_note_that_a_full_disk_does_not_take_ends_no_request(
    admission: Make, directory: ServerDirectory, monkeypatch: pytest.MonkeyPatch
):
    """It would let others in earlier; they wait for the end of the answer instead."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    first, second = admission(), admission()
    monkeypatch.setattr(os, "pwrite", refuse)
    enter(first, late=True)
    assert not enters(second)
    first.leave(is_over=True)
    enter(second)


@pytest.mark.parametrize("look", [running_servers, lost_servers])
def test_a_look_at_all_servers_ends_in_a_list_or_a_typed_error(fake: Fake, look):
    """As `ps` and `doctor` look at them, while another program may be removing them."""
    with lease(fake.spec(), policy=FAST):
        refusals = Refusals(fake.directory().path.parents[1])
        check(refusals, look)
        state = fake.state()
        check(refusals, partial(idle_seconds, fake.directory(), state, state.ready_at + 1))


def test_a_plan_is_made_or_a_typed_error_is_raised(fake: Fake, home: Path):
    """Whatever of the model, the runtime or other servers cannot be looked at."""
    with lease(fake.spec(), policy=FAST):
        refusals = Refusals(home.parent)
        errors = (errno.EMFILE, errno.EIO)
        check(refusals, lambda: plan_for(fake.spec()), errors)
        check(refusals, lambda: parse_model_id(fake.model), errors)
        check(refusals, ensure_runtime, errors)


def test_too_many_open_files_do_not_hide_a_version(fake: Fake, home: Path):
    """What nobody can look at is not what is missing: nothing is to be installed for it."""
    version = installed_version(fake.binary)
    assert version is not None
    refusals = Refusals(home.parent)
    number, calls = 1, 1
    while number <= calls:
        refusals.refuse(errno.EMFILE, number)
        with refusals.installed(), suppress(CarVllmError):
            assert installed_version(fake.binary) == version
        calls, number = max(calls, refusals.calls), number + 1


def test_old_keys_are_tidied_up_without_an_error(fake: Fake, home: Path):
    """A server that has just become ready does it: it would end for a refused look."""
    with lease(fake.spec(), policy=FAST):
        pass
    os.utime(fake.directory().state, (1, 1))
    refusals, number, calls = Refusals(home), 1, 1
    while number <= calls:
        refusals.refuse(errno.ENFILE, number)
        with refusals.installed():
            remove_old_keys(fake.directory(server_env=(("OF", "other"),)), 1.0)
        calls, number = max(calls, refusals.calls), number + 1
    assert calls > 1


# A supervisor that may not look at files of a name while another file is there.
_SHORT_SIGHTED = """
import errno, io, os, runpy, sys
name, switch, refused = sys.argv[1:4]
def refusing(call):
    def called(path, *rest, **options):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith(name):
            if os.path.lexists(switch):
                with open(refused, "a") as file:
                    file.write("x")
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE), os.fspath(path))
        return call(path, *rest, **options)
    return called
os.stat, os.lstat = map(refusing, (os.stat, os.lstat))
os.scandir, os.open = map(refusing, (os.scandir, os.open))
module = sys.argv[sys.argv.index("-m") + 1]
sys.argv[:] = [module, *sys.argv[sys.argv.index("-m") + 2 :]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", ["lease.lock", "server.lock", "clients", "server.log"])
def test_what_the_system_refuses_for_a_moment_ends_no_running_server(
    fake: Fake, tmp_path: Path, monkeypatch, name: str
):
    """The same server answers afterwards, and it can be stopped meanwhile."""
    switch, refused, script = (tmp_path / n for n in ("switch", "refused", "short_sighted.py"))
    script.write_text(_SHORT_SIGHTED)
    python = tmp_path / "python"
    words = shlex.join([sys.executable, "-P", str(script), name, str(switch), str(refused)])
    python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    with lease(fake.spec(), policy=FAST):
        pass
    for ends in (False, True):
        switch.touch()
        refused.unlink(missing_ok=True)
        eventually(lambda: refused.exists() and refused.stat().st_size > 2, "looks to be refused")
        assert fake.state().phase == "ready"
        if not ends:
            switch.unlink()
            with lease(fake.spec(), policy=FAST) as held:
                assert held.endpoint.generation == 1
    fake.stop()
    assert fake.state().reason == "user"


@pytest.mark.parametrize("error", [errno.EACCES, errno.EMFILE, errno.EIO, errno.EROFS])
def test_what_the_system_refuses_a_command_is_no_fault_of_the_program(
    home: Path, monkeypatch, capsys: pytest.CaptureFixture, error: int
):
    """It is told in three lines, and no bug is reported."""
    monkeypatch.setattr(logging.getLogger("langchain_car_vllm"), "handlers", [])
    refusals = Refusals(home)
    refusals.refuse(error, 1)
    with (
        run_in_this_process("service", "status"),
        refusals.installed(),
        pytest.raises(SystemExit) as end,
    ):
        main()
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert said.startswith("error: the system refused: `")
    assert os.strerror(error) in said
    assert said.count("\n") == 3


def test_a_file_of_the_run_state_is_not_told_as_the_binary(fake: Fake):
    """Whoever is told to repair the install would do so in vain."""
    directory = fake.directory()
    directory.create()
    for number in (2, 3):
        (directory.path / f"server.log.{number}" / "x").mkdir(parents=True)
    with pytest.raises(StateDirectoryError, match=r"server\.log\.2") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert "CAR_HOME" in (caught.value.hint or "")
